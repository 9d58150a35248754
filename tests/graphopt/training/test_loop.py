"""The loop alone, on a module of torch's own."""

import dataclasses
import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from graphopt import Context  # noqa: E402
from graphopt.errors import InputError  # noqa: E402
from graphopt.testing import parse_model  # noqa: E402
from graphopt.training.batches import Batch  # noqa: E402
from graphopt.training.loop import train  # noqa: E402
from graphopt.training.schedule import Plan  # noqa: E402

MODEL = parse_model("y = Relu(x)")


class Net(torch.nn.Module):
    """Two layers that give a tuple, as a lowered model does."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.a, self.b = torch.nn.Linear(6, 16), torch.nn.Linear(16, 3)

    def forward(self, x):
        return (self.b(torch.tanh(self.a(x))),)


@dataclasses.dataclass
class Data:
    """Targets of another net; half the rows of `held` batches of their own."""

    x: object
    y: object
    size: int = 16
    scale: float = 1.0

    @property
    def steps(self):
        return math.ceil(len(self.x) / self.size)

    def epoch(self, number, share):
        order = np.random.default_rng(number).permutation(len(self.x))
        for at in range(0, len(order), self.size):
            part = order[at : at + self.size][share[0] :: share[1]]
            yield [Batch((self.x[part],), (self.y[part],), rows=len(part))]

    def held(self, share):
        part = slice(share[0], None, share[1])
        x, y = self.x[part], self.y[part] * self.scale
        yield Batch((x,), (y,), rows=len(x))


def data(seed=5, rows=128, **options):
    torch.manual_seed(seed)
    x = torch.randn(rows, 6)
    with torch.no_grad():
        return Data(x, Net(1)(x)[0], **options)


def mse(outputs, batch):
    return ((outputs[0].float() - batch.targets[0]) ** 2).mean()


def context(progress=None):
    return Context(MODEL, progress=progress)


def weights(net):
    return {n: p.detach().clone() for n, p in net.named_parameters()}


def test_the_loss_falls_and_the_report_says_by_how_much():
    net = Net()
    report = train(net, data(), mse, Plan(epochs=8, lr=1e-2), context())
    assert report.epochs == 8
    assert report.steps == 8 * 8
    assert report.after < 0.3 * report.before
    assert report.after == min(report.history)
    with torch.no_grad():
        held = next(iter(data().held((0, 1))))
        assert float(mse(net(*held.inputs), held)) == pytest.approx(report.after, rel=1e-4)
    assert "all epochs done" in str(report)


def test_the_same_seed_gives_the_same_weights():
    nets = [Net(), Net()]
    for net in nets:
        train(net, data(), mse, Plan(epochs=2), context())
    a, b = map(weights, nets)
    assert all(torch.equal(a[n], b[n]) for n in a)


def test_weights_that_get_no_better_are_put_back():
    net = Net(1)  # the teacher itself: nothing can be won
    before = weights(net)
    report = train(net, data(), mse, Plan(epochs=9, lr=0.5, patience=2), context())
    assert not report.improved
    assert report.epochs == 2
    assert report.stopped == "no better for 2 epochs"
    assert "stay as they were" in str(report)
    assert all(torch.equal(before[n], p) for n, p in net.named_parameters())


def test_a_loss_that_is_not_finite_ends_training():
    def bad(outputs, batch):
        return mse(outputs, batch) * (math.nan if torch.is_grad_enabled() else 1.0)

    net = Net()
    before = weights(net)
    report = train(net, data(), bad, Plan(), context())
    assert report.stopped == "the loss became nan"
    assert all(torch.equal(before[n], p) for n, p in net.named_parameters())


def test_zeros_of_a_sparse_matrix_stay_and_others_move():
    net = Net()
    with torch.no_grad():
        net.a.weight[:, ::2] = 0
    train(net, data(), mse, Plan(epochs=2, lr=1e-2, decay=0.01), context())
    assert (net.a.weight[:, ::2] == 0).all()
    assert (net.a.weight[:, 1::2] != 0).all()


def test_frozen_parameters_stay():
    net = Net()
    net.b.weight.requires_grad_(False)
    before = net.b.weight.clone()
    train(net, data(), mse, Plan(epochs=1), context())
    assert torch.equal(net.b.weight, before)


@pytest.mark.parametrize("killed_at", [1, 8, 13, 20])
def test_an_interrupted_training_continues_to_the_same_weights(tmp_path, killed_at):
    plan = Plan(epochs=3, checkpoint=tmp_path / "c.pt", key="k", every=0.0)
    whole = Net()
    expected = train(whole, data(), mse, dataclasses.replace(plan, checkpoint=None), context())

    def kill(text, done, total):
        if done >= killed_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(Net(), data(), mse, plan, context(kill))
    again = Net()
    report = train(again, data(), mse, plan, context())
    assert report.history == expected.history
    a, b = weights(whole), weights(again)
    assert all(torch.equal(a[n], b[n]) for n in a)
    done = train(Net(), data(), mse, plan, context())  # finished: nothing is trained again
    assert done.history == expected.history


def test_a_checkpoint_of_another_training_is_refused(tmp_path):
    plan = Plan(epochs=1, checkpoint=tmp_path / "c.pt", key="one")
    train(Net(), data(), mse, plan, context())
    with pytest.raises(InputError, match="another training"):
        train(Net(), data(), mse, dataclasses.replace(plan, key="two"), context())
    plan.checkpoint.write_bytes(b"no checkpoint")
    with pytest.raises(InputError, match="cannot be read"):
        train(Net(), data(), mse, plan, context())


def test_a_step_of_several_batches_equals_one_of_all_their_rows():
    class Parts(Data):
        def epoch(self, number, share):
            for (batch,) in super().epoch(number, share):
                cuts = [slice(0, 3), slice(3, 10), slice(10, None)]
                rows = [(batch.inputs[0][c], batch.targets[0][c]) for c in cuts]
                yield [Batch((x,), (y,), rows=len(x)) for x, y in rows]

    whole, parts = Net(), Net()
    given = data()
    train(whole, given, mse, Plan(epochs=2), context())
    train(parts, Parts(given.x, given.y), mse, Plan(epochs=2), context())
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        # bfloat16 activations: sums in another order differ by rounding, Adam's steps by more
        assert torch.allclose(a, b, atol=2e-3)
