"""Small trained models of one framework, for bench/worlds.py: worlds_models.py FRAMEWORK FOLDER."""

import os
import sys
from pathlib import Path

import numpy as np

rng = np.random.default_rng(0)
X = rng.standard_normal((400, 8)).astype(np.float32)
CLASSES = (X[:, 0] + X[:, 1] > 0).astype(int) + (X[:, 2] * X[:, 3] > 0.5)
NUMBERS = (X[:, 0] * X[:, 1] + np.abs(X[:, 2])).astype(np.float32)
#: One more column: which of 30 towns, of no order.
TOWNS = np.random.default_rng(1).permutation(30)[np.digitize(NUMBERS, np.linspace(-2, 3, 29))]
WITH_TOWNS = np.c_[X, TOWNS].astype(np.float32)


def sklearn(folder):
    import joblib
    import pandas as pd
    import skops.io
    from sklearn import ensemble, linear_model, naive_bayes, neighbors, neural_network, svm, tree
    from sklearn.compose import ColumnTransformer
    from sklearn.decomposition import PCA
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, PolynomialFeatures, StandardScaler

    texts = np.array(["low", "middle", "high"])[CLASSES]
    classifiers = {
        "forest": make_pipeline(
            StandardScaler(), ensemble.RandomForestClassifier(30, random_state=0)
        ),
        "extra_trees": ensemble.ExtraTreesClassifier(20, max_depth=6, random_state=0),
        "boosting": ensemble.GradientBoostingClassifier(n_estimators=15, random_state=0),
        "adaboost": ensemble.AdaBoostClassifier(n_estimators=10, random_state=0),
        "tree": tree.DecisionTreeClassifier(max_depth=5, random_state=0),
        "logistic": make_pipeline(StandardScaler(), linear_model.LogisticRegression()),
        "svc": svm.SVC(probability=False),
        "bayes": naive_bayes.GaussianNB(),
        "mlp": neural_network.MLPClassifier((16,), max_iter=60, random_state=0),
    }
    for name, model in classifiers.items():
        target = texts if name == "forest" else CLASSES
        skops_or_joblib(folder, name, model.fit(X, target), skops, joblib)
    regressors = {
        "forest_numbers": ensemble.RandomForestRegressor(20, max_depth=7, random_state=0),
        "boosting_numbers": ensemble.GradientBoostingRegressor(n_estimators=20, random_state=0),
        "histogram": ensemble.HistGradientBoostingRegressor(max_iter=20, random_state=0),
        "ridge": make_pipeline(PolynomialFeatures(2), linear_model.Ridge()),
        "components": make_pipeline(PCA(4), linear_model.LinearRegression()),
        "svr": svm.SVR(),
        "neighbours": neighbors.KNeighborsRegressor(3),
    }
    for name, model in regressors.items():
        joblib.dump(model.fit(X, NUMBERS), folder / f"{name}.joblib")
    table = pd.DataFrame(
        {"size": X[:, 0], "age": X[:, 1], "town": np.array(["a", "b", "c"])[CLASSES]}
    )
    columns = ColumnTransformer(
        [("n", StandardScaler(), ["size", "age"]), ("t", OneHotEncoder(), ["town"])]
    )
    made = make_pipeline(columns, ensemble.RandomForestClassifier(10, random_state=0))
    joblib.dump(made.fit(table, CLASSES), folder / "table.joblib")


def skops_or_joblib(folder, name, model, skops, joblib):
    if name in ("forest", "logistic"):
        skops.io.dump(model, folder / f"{name}.skops")
    else:
        joblib.dump(model, folder / f"{name}.joblib")


def xgboost(folder):
    import xgboost

    def save(name, objective, target, ending="json", **more):
        given = {"objective": objective, "max_depth": 4, **more}
        xgboost.train(given, xgboost.DMatrix(X, target), 25).save_model(folder / f"{name}.{ending}")

    save("two_classes", "binary:logistic", CLASSES > 0)
    save("classes", "multi:softprob", CLASSES, "ubj", num_class=3)
    save("numbers", "reg:squarederror", NUMBERS)
    save("counts", "count:poisson", np.round(np.abs(NUMBERS)))
    save("dart", "multi:softprob", CLASSES, num_class=3, booster="dart", rate_drop=0.3)
    save("share", "reg:logistic", NUMBERS > 1)
    save("quantiles", "reg:quantileerror", NUMBERS, quantile_alpha=[0.1, 0.5, 0.9])
    save("several", "reg:squarederror", np.stack([NUMBERS, X[:, 0]], 1))
    save("labels", "binary:logistic", np.stack([CLASSES > 0, X[:, 0] > 0], 1))
    rows = xgboost.DMatrix(
        WITH_TOWNS, NUMBERS, feature_types=["q"] * 8 + ["c"], enable_categorical=True
    )
    xgboost.train({"max_depth": 4}, rows, 25).save_model(folder / "categories.json")


def lightgbm(folder):
    import lightgbm

    def save(name, objective, target, **more):
        given = {"objective": objective, "verbose": -1, "min_data_in_leaf": 5, **more}
        lightgbm.train(given, lightgbm.Dataset(X, target), 25).save_model(folder / f"{name}.txt")

    save("two_classes", "binary", CLASSES > 0)
    save("classes", "multiclass", CLASSES, num_class=3)
    save("numbers", "regression", NUMBERS)
    save("depth", "regression", NUMBERS, max_depth=3)
    save("dart", "regression", NUMBERS, boosting="dart")
    sets = {"objective": "regression", "verbose": -1, "min_data_per_group": 5, "cat_smooth": 1}
    rows = lightgbm.Dataset(WITH_TOWNS, NUMBERS, categorical_feature=[8])
    lightgbm.train(sets, rows, 25).save_model(folder / "categories.txt")


def keras(folder):
    os.environ["KERAS_BACKEND"] = "jax"
    import keras
    from keras import layers

    keras.utils.set_random_seed(0)

    def save(name, *parts):
        keras.Sequential(parts).save(folder / f"{name}.keras")

    save(
        "dense", keras.Input((8,)), layers.Dense(32, "relu"), layers.BatchNormalization(),
        layers.Dropout(0.3), layers.Dense(3, "softmax"),
    )  # fmt: skip
    save(
        "cnn", keras.Input((16, 16, 3)), layers.Conv2D(8, 3, padding="same", activation="relu"),
        layers.MaxPooling2D(), layers.Conv2D(16, 3, strides=2), layers.GlobalAveragePooling2D(),
        layers.Dense(4),
    )  # fmt: skip
    save(
        "separable", keras.Input((16, 16, 4)), layers.DepthwiseConv2D(3, padding="same"),
        layers.Conv2D(8, 1), layers.BatchNormalization(), layers.ReLU(6.0),
        layers.GlobalMaxPooling2D(),
    )  # fmt: skip
    recurrent = {
        "simple_rnn": layers.SimpleRNN(8),
        "gru": layers.GRU(8, return_sequences=True),
        "both_ways": layers.Bidirectional(layers.LSTM(6, return_sequences=True)),
        "backwards": layers.GRU(8, go_backwards=True),
    }
    for name, layer in recurrent.items():
        save(name, keras.Input((None, 5)), layer, layers.Dense(2))
    two = layers.LSTM(12, return_sequences=True), layers.LSTM(8)
    save("lstm", keras.Input((None, 6)), *two, layers.Dense(2))
    save("conv1d", keras.Input((None, 6)), layers.Conv1D(8, 3, padding="causal"), layers.Dense(2))
    ids = keras.Input((None,), dtype="int32")
    x = layers.Embedding(50, 16)(ids)
    x = layers.LayerNormalization()(x + layers.MultiHeadAttention(2, 8)(x, x))
    made = layers.Dense(3)(layers.GlobalAveragePooling1D()(x))
    keras.Model(ids, made).save(folder / "attention.keras")


FUNCTIONS = """
import jax
import jax.numpy as jnp

key = jax.random.PRNGKey(0)


def weights(*shape):
    return jax.random.normal(key, shape) / shape[0] ** 0.5


def dense():
    w, v = weights(8, 32), weights(32, 4)
    return lambda x: jax.nn.softmax(jax.nn.gelu(x @ w) @ v), [(("batch", 8), "float32")]


def convolution():
    k = weights(8, 3, 3, 3)
    def f(x):
        y = jax.lax.conv_general_dilated(x, k, (2, 2), "SAME")
        return jax.nn.relu(y).mean((2, 3))
    return f, [(("batch", 3, 16, 16), "float32")]


def recurrence():
    w = weights(8, 8)
    def f(x):
        def step(h, one):
            h = jnp.tanh(h @ w + one)
            return h, h
        return jax.lax.scan(step, jnp.zeros((x.shape[1], 8)), x)[0]
    return f, [((7, "batch", 8), "float32")]


def attention():
    q, k, v = weights(16, 16), weights(16, 16) * 2, weights(16, 16)
    def f(x):
        return jax.nn.softmax((x @ q) @ jnp.swapaxes(x @ k, 1, 2) / 4.0) @ (x @ v)
    return f, [(("batch", "length", 16), "float32")]


def norm():
    g = weights(12)
    def f(x):
        m = x.mean(-1, keepdims=True)
        return (x - m) * jax.lax.rsqrt(((x - m) ** 2).mean(-1, keepdims=True) + 1e-5) * g
    return f, [(("batch", "length", 12), "float32")]
"""


def jax(folder):
    (folder / "functions.py").write_text(FUNCTIONS)


def tensorflow(folder):
    import tensorflow as tf

    def normal(*shape):
        return tf.Variable(rng.standard_normal(shape).astype(np.float32) * 0.3)

    class Nets(tf.Module):
        def __init__(self):
            super().__init__()
            self.w, self.k = normal(8, 4), normal(3, 3, 3, 8)

        @tf.function(input_signature=[tf.TensorSpec((None, 8), tf.float32, name="x")])
        def dense(self, x):
            return {"y": tf.nn.softmax(tf.nn.relu(x) @ self.w)}

        @tf.function(input_signature=[tf.TensorSpec((None, 16, 16, 3), tf.float32, name="x")])
        def conv(self, x):
            return {"y": tf.reduce_mean(tf.nn.relu(tf.nn.conv2d(x, self.k, 1, "SAME")), [1, 2])}

    nets = Nets()
    for name in ("dense", "conv"):
        function = getattr(nets, name)
        tf.saved_model.save(nets, str(folder / name), signatures=function)
        made = tf.lite.TFLiteConverter.from_concrete_functions(
            [function.get_concrete_function()], nets
        )
        (folder / f"{name}.tflite").write_bytes(made.convert())


def paddle(folder):
    import paddle
    from paddle import nn
    from paddle.static import InputSpec

    paddle.seed(0)
    nets = {
        "dense": (
            nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 3), nn.Softmax()), [None, 8],
        ),
        "conv": (
            nn.Sequential(
                nn.Conv2D(3, 8, 3, padding=1), nn.BatchNorm2D(8), nn.ReLU(),
                nn.AdaptiveAvgPool2D(1), nn.Flatten(), nn.Linear(8, 3),
            ),
            [None, 3, 16, 16],
        ),
        "norm": (nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Hardswish()), [None, None, 8]),
    }  # fmt: skip
    for name, (net, shape) in nets.items():
        net.eval()
        paddle.jit.save(net, str(folder / name), input_spec=[InputSpec(shape, "float32", "x")])


if __name__ == "__main__":
    globals()[sys.argv[1]](Path(sys.argv[2]))
