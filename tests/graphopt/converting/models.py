"""Small models of a framework, written where it is installed: models.py FRAMEWORK FOLDER."""

import os
import sys
from pathlib import Path

import numpy as np

rng = np.random.default_rng(0)
X = rng.standard_normal((120, 4)).astype(np.float32)
Y = (X[:, 0] + X[:, 1] > 0).astype(int) + (X[:, 2] > 1)


def sklearn(folder):
    import joblib
    import pandas as pd
    import skops.io
    from sklearn.compose import ColumnTransformer
    from sklearn.ensemble import (
        HistGradientBoostingClassifier,
        HistGradientBoostingRegressor,
        RandomForestClassifier,
        RandomForestRegressor,
    )
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.mixture import GaussianMixture
    from sklearn.naive_bayes import CategoricalNB
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import KBinsDiscretizer, OneHotEncoder, StandardScaler

    names = np.array(["low", "middle", "high"])[Y]
    forest = make_pipeline(StandardScaler(), RandomForestClassifier(9, random_state=0))
    forest.fit(X, names)
    joblib.dump(forest, folder / "forest.joblib")
    skops.io.dump(forest, folder / "forest.skops")
    table = pd.DataFrame({"size": X[:, 0], "town": np.array(["a", "b", "c"])[Y]})
    columns = ColumnTransformer(
        [("n", StandardScaler(), ["size"]), ("t", OneHotEncoder(), ["town"])]
    )
    joblib.dump(
        make_pipeline(columns, LogisticRegression()).fit(table, Y > 0), folder / "table.joblib"
    )
    table["floor"] = rng.integers(0, 4, len(table))
    known = OneHotEncoder(handle_unknown="ignore")
    texts = make_pipeline(SimpleImputer(strategy="most_frequent"), known)
    columns = ColumnTransformer(
        [("b", KBinsDiscretizer(3), [0]), ("t", texts, ["town"]), ("f", known, ["floor"])]
    )
    joblib.dump(make_pipeline(columns, LogisticRegression()).fit(table, Y), folder / "bins.joblib")
    joblib.dump(GaussianMixture(2, random_state=0).fit(X), folder / "mixture.joblib")
    counts = CategoricalNB().fit(rng.integers(0, 3, X.shape), Y)
    joblib.dump(counts, folder / "counts.joblib")
    two = RandomForestRegressor(5, max_depth=3, random_state=0).fit(X, X[:, :2])
    joblib.dump(two, folder / "two_numbers.joblib")
    gaps = np.where(rng.random(X.shape) < 0.1, np.nan, X)
    numbers = make_pipeline(StandardScaler(), HistGradientBoostingRegressor(max_iter=5))
    joblib.dump(numbers.fit(gaps, X[:, 0]), folder / "histogram.joblib")
    trees = RandomForestClassifier(5, max_depth=4, random_state=0).fit(gaps, Y)
    joblib.dump(trees, folder / "gaps.joblib")
    several = RandomForestClassifier(5, max_depth=4, random_state=0).fit(gaps, np.c_[Y > 0, Y > 1])
    joblib.dump(several, folder / "gaps_labels.joblib")
    classes = HistGradientBoostingClassifier(max_iter=5).fit(gaps, Y)
    joblib.dump(classes, folder / "histogram_classes.joblib")


def xgboost(folder):
    import xgboost

    model = xgboost.train(
        {"objective": "multi:softprob", "num_class": 3, "max_depth": 3}, xgboost.DMatrix(X, Y), 8
    )
    model.save_model(folder / "classes.json")
    model.save_model(folder / "classes.ubj")
    labels = {"objective": "multi:softmax", "num_class": 3, "max_depth": 3}
    xgboost.train(labels, xgboost.DMatrix(X, Y), 8).save_model(folder / "labels.json")
    groups = xgboost.DMatrix(X, Y, group=[10] * 12)
    xgboost.train({"objective": "rank:ndcg"}, groups, 5).save_model(folder / "rank.json")
    numbers = xgboost.train({"max_depth": 3}, xgboost.DMatrix(X, X[:, 3]), 8)
    numbers.save_model(folder / "numbers.json")

    def save(name, target, **given):
        made = xgboost.train({"max_depth": 3, **given}, xgboost.DMatrix(X, target), 8)
        made.save_model(folder / f"{name}.json")
        return made

    two = np.stack([X[:, 3] > 0, X[:, 0] > 0], 1)
    save("dart", Y, objective="multi:softprob", num_class=3, booster="dart", rate_drop=0.3)
    save("dart_number", X[:, 3], booster="dart", rate_drop=0.3, normalize_type="forest")
    save("share", X[:, 3] > 0, objective="reg:logistic")
    save("score", X[:, 3] > 0, objective="binary:logitraw")
    save("quantiles", X[:, 3], objective="reg:quantileerror", quantile_alpha=[0.1, 0.5, 0.9])
    save("several", X[:, :3])
    save("two_labels", two, objective="binary:logistic")
    save("linear", X[:, 3], booster="gblinear")
    save("hinge", X[:, 3] > 0, objective="binary:hinge")
    save("vectors", X[:, :3], multi_strategy="multi_output_tree", tree_method="hist")
    save("counts", np.abs(np.round(X[:, :2])), objective="count:poisson")
    save("hazard", np.abs(X[:, 3]), objective="survival:cox")
    save("forest", Y, objective="multi:softprob", num_class=3, num_parallel_tree=3, subsample=0.5)
    early = save("whole", X[:, 3])
    early.set_attr(best_iteration="3")
    early.save_model(folder / "early.json")
    early[:4].save_model(folder / "best.json")
    kinds = np.c_[X, rng.integers(0, 30, len(X))]
    types = ["q"] * X.shape[1] + ["c"]
    rows = xgboost.DMatrix(kinds, kinds[:, -1] % 3, feature_types=types, enable_categorical=True)
    xgboost.train({"max_depth": 3}, rows, 8).save_model(folder / "categories.json")


def lightgbm(folder):
    import lightgbm

    quiet = {"verbose": -1, "min_data_in_leaf": 3}
    data = lightgbm.Dataset(X, Y)
    model = lightgbm.train({"objective": "multiclass", "num_class": 3, **quiet}, data, 8)
    model.save_model(folder / "classes.txt")
    lightgbm.train(quiet, lightgbm.Dataset(X, X[:, 3]), 8).save_model(folder / "numbers.txt")
    forest = {"boosting": "rf", "bagging_freq": 1, "bagging_fraction": 0.5, **quiet}
    lightgbm.train(forest, lightgbm.Dataset(X, X[:, 3]), 8).save_model(folder / "forest.txt")
    steep = {"objective": "binary", "sigmoid": 0.5, **quiet}
    lightgbm.train(steep, lightgbm.Dataset(X, Y > 0), 8).save_model(folder / "steep.txt")
    kinds = rng.integers(0, 9, len(X))
    table = lightgbm.Dataset(np.c_[X, kinds], kinds % 3, categorical_feature=[4])
    one = {"min_data_per_group": 1, "cat_smooth": 1, **quiet}
    lightgbm.train(one, table, 8).save_model(folder / "categories.txt")
    dart = {"boosting": "dart", **quiet}
    lightgbm.train(dart, lightgbm.Dataset(X, X[:, 3]), 8).save_model(folder / "dart.txt")
    sparse = lightgbm.Dataset(np.where(rng.random(X.shape) < 0.4, 0, X), X[:, 3])
    zeros = {"zero_as_missing": True, **quiet}
    lightgbm.train(zeros, sparse, 8).save_model(folder / "zeros.txt")
    each = {"objective": "multiclassova", "num_class": 3, "sigmoid": 0.5, **quiet}
    lightgbm.train(each, data, 8).save_model(folder / "each.txt")
    for name in ("fair", "cross_entropy", "cross_entropy_lambda"):
        target = lightgbm.Dataset(X, np.abs(np.tanh(X[:, 3])))
        lightgbm.train({"objective": name, **quiet}, target, 8).save_model(folder / f"{name}.txt")
    roots = {"reg_sqrt": True, **quiet}
    lightgbm.train(roots, lightgbm.Dataset(X, X[:, 3]), 8).save_model(folder / "roots.txt")

    def own(scores, rows):
        return scores - rows.get_label(), np.ones_like(scores)

    mine = {"objective": own, **quiet}
    lightgbm.train(mine, lightgbm.Dataset(X, X[:, 3]), 8).save_model(folder / "own.txt")
    linear = {"linear_tree": True, **quiet}
    lightgbm.train(linear, lightgbm.Dataset(X, X[:, 3]), 8).save_model(folder / "linear.txt")


def keras(folder):
    os.environ.setdefault("KERAS_BACKEND", "jax")
    import keras
    from keras import layers

    def save(name, *parts):
        keras.Sequential(parts).save(folder / f"{name}.keras")

    save("dense", keras.Input((8,)), layers.Dense(6, "relu"), layers.Dense(3, "softmax"))
    pooled = layers.Conv2D(4, 3, activation="relu"), layers.MaxPooling2D(), layers.Flatten()
    save("pooled", keras.Input((8, 8, 3)), *pooled, layers.Dense(3))
    both = layers.Bidirectional(layers.LSTM(4, return_sequences=True))
    save("both_ways", keras.Input((None, 5)), both, layers.Dense(2))

    class Doubled(layers.Layer):
        def call(self, x):
            return 2 * x

    save("own_layer", keras.Input((8,)), Doubled())
    save("lambda", keras.Input((8,)), layers.Lambda(lambda x: 2 * x))


def jax(folder):
    (folder / "functions.py").write_text(
        "import jax\nimport jax.numpy as jnp\n\n\ndef dense():\n"
        "    w = jax.random.normal(jax.random.PRNGKey(0), (8, 4))\n"
        "    return lambda x: jax.nn.softmax(jnp.tanh(x @ w)), [(('batch', 8), 'float32')]\n"
    )


def tensorflow(folder):
    import tensorflow as tf

    class Dense(tf.Module):
        def __init__(self):
            super().__init__()
            self.w = tf.Variable(rng.standard_normal((8, 4)).astype(np.float32))

        @tf.function(input_signature=[tf.TensorSpec((None, 8), tf.float32, name="x")])
        def call(self, x):
            return {"y": tf.nn.softmax(tf.nn.relu(x) @ self.w)}

    model = Dense()
    tf.saved_model.save(model, str(folder / "dense"), signatures=model.call)
    held = tf.constant(rng.standard_normal((8, 4)).astype(np.float32))  # no variable

    @tf.function(input_signature=[tf.TensorSpec((None, 8), tf.float32, name="x")])
    def product(x):
        return {"y": x @ held}

    module = tf.Module()
    module.product, module.held = product, held
    tf.saved_model.save(module, str(folder / "constant"), signatures=product)
    functions = [model.call.get_concrete_function()]
    converter = tf.lite.TFLiteConverter.from_concrete_functions(functions, model)
    (folder / "dense.tflite").write_bytes(converter.convert())


def paddle(folder):
    import paddle
    from paddle.static import InputSpec

    model = paddle.nn.Sequential(paddle.nn.Linear(8, 6), paddle.nn.ReLU(), paddle.nn.Linear(6, 3))
    model.eval()
    rows = [InputSpec([None, 8], "float32", "x")]
    paddle.jit.save(model, str(folder / "dense"), input_spec=rows)
    paddle.jit.save(paddle.nn.GELU(), str(folder / "plain"), input_spec=rows)


if __name__ == "__main__":
    globals()[sys.argv[1]](Path(sys.argv[2]))
