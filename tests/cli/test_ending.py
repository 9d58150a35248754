"""How a command ends early: signals, closed streams; and what it sends: nothing."""

import dataclasses
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import onnx
import pytest

import graphopt
from graphopt.backend import find_target
from graphopt.errors import ModelError

COMMAND = [sys.executable, "-P", "-m", "graphopt"]
needs_proc = pytest.mark.skipif(not Path("/proc/self/environ").is_file(), reason="needs /proc")


def marked(mark):
    """Processes that inherited the mark, and their states."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if mark.encode() in (entry / "environ").read_bytes():
                    state = (entry / "stat").read_text().rsplit(")", 1)[1].split()[0]
                    if state != "Z":
                        found[int(entry.name)] = state
            except OSError:
                pass
    return found


def wait_until(true, seconds=600.0):
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.05)
    assert true()


def start(folder, *argv, **more):
    temporary = folder / "temporary"
    temporary.mkdir()
    mark = f"GRAPHOPT_TEST={folder}"
    env = {**os.environ, "TMPDIR": str(temporary), "GRAPHOPT_TEST": str(folder)}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    given = {**streams, "preexec_fn": heed_signals, **more}
    return subprocess.Popen([*COMMAND, *argv], env=env, **given), mark


def heed_signals():
    """Signals do what they do by default, also where the tests themselves were told to ignore them.

    A command started in the background of a script inherits that, and so would ours.
    """
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


@needs_proc
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP", "SIGKILL"])
def test_a_signal_leaves_no_process_and_no_file(folder, name):
    number = getattr(signal, name)
    process, mark = start(folder, "bench", "model.onnx", "model.onnx", "--seconds", "600")
    # two workers, of which at least one is stopped
    wait_until(lambda: len(marked(mark)) == 3 and "T" in marked(mark).values())
    process.send_signal(number)
    out, err = process.communicate(timeout=600)
    wait_until(lambda: not marked(mark))
    if name == "SIGKILL":
        return
    assert process.returncode == 128 + number
    assert out == ""
    assert "interrupted; nothing was written" in err
    assert list((folder / "temporary").iterdir()) == []
    assert not [p for p in folder.iterdir() if p.name.startswith(".")]


SLOW = """
import sys, time
from graphopt.pipeline.result import Result
Result._tune = lambda self, path, progress: time.sleep(600)
from graphopt.cli import main
main(sys.argv[1:])
"""


def test_what_was_written_before_a_signal_is_told(folder):
    command = [sys.executable, "-c", SLOW, *OPTIMIZE]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: Path("o.session.json").exists())
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 143
    assert "interrupted; written until then: o.onnx, o.session.json" in err
    onnx.checker.check_model("o.onnx")


def test_tuning_that_fails_is_a_note(folder, monkeypatch):
    from graphopt.pipeline import result

    def fails(*args, **options):
        raise ModelError("its process ended")

    monkeypatch.setattr(result, "tune", fails)
    made = graphopt.optimize("model.onnx", "fuse", measure=False)
    timed = dataclasses.replace(made, tuned=(0.1, {}), target=find_target("cpu"))
    written = timed.write("o.onnx")
    assert "session options were not tried: its process ended" in written.report.notes
    onnx.checker.check_model("o.onnx")


OPTIMIZE = ("optimize", "model.onnx", "-p", "clean", "--no-measure", "-o", "o.onnx")


def shell(line, **env):
    command = line.replace("graphopt", " ".join(COMMAND), 1)
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        capture_output=True,
        text=True,
        env={**os.environ, **env},
    )


def test_a_reader_that_has_read_enough_is_no_error(folder):
    for command in ("inspect model.onnx", "passes --json", "passes", "--help", " ".join(OPTIMIZE)):
        done = shell(f"graphopt {command} | true")
        assert (done.returncode, done.stderr) == (0, ""), command
    assert Path("o.onnx").exists()


def test_a_closed_or_full_output_hides_no_model(folder):
    done = shell(f"graphopt {' '.join(OPTIMIZE)} >&-")
    assert (done.returncode, done.stderr) == (0, "")
    done = shell(f"graphopt {' '.join(OPTIMIZE)} <&- >&- 2>&-")
    assert done.returncode == 0
    onnx.checker.check_model("o.onnx")
    if Path("/dev/full").exists():
        done = shell(f"graphopt {' '.join(OPTIMIZE)} > /dev/full")
        assert (done.returncode, done.stderr.count("\n")) == (3, 1)
        assert "written until then: o.onnx" in done.stderr
        done = shell("graphopt inspect model.onnx --json > /dev/full")
        assert (done.returncode, done.stderr.count("\n")) == (3, 1)


NAMES = ["[/x]", "[red]y[/red]", "[link=http://e]z[/link]", "\x1b]0;t\x07\x1b[31m", ":smile:"]
NAMES += ["a\nb", "\u202eabc"]


@pytest.fixture
def hostile(folder):
    """A model and its optimized form in which every name is markup, or worse."""
    proto = onnx.load("model.onnx")
    proto.producer_name = "".join(NAMES)
    for node, name in zip(proto.graph.node, NAMES, strict=False):
        node.name = name
    for k, name in enumerate(NAMES):
        node = proto.graph.node.add(
            op_type="Relu", input=["x"], output=[f"o{name}"], name=f"n{name}"
        )
        proto.graph.output.add(name=f"o{name}").type.CopyFrom(proto.graph.output[0].type)
        proto.graph.output[-1].type.tensor_type.shape.dim[1].dim_value = 16
        assert node.output[0] == proto.graph.output[k + 1].name
    onnx.save(proto, "h.onnx")
    return folder


def test_names_are_text(hostile, graphopt):
    for argv in (
        ["optimize", "h.onnx", "-p", "clean,fuse", "-o", "o.onnx", "--no-measure"],
        ["inspect", "h.onnx"],
        ["inspect", "h.onnx", "--dims"],
        ["inspect", "h.onnx", "--profile"],
        ["compare", "h.onnx", "o.onnx", "--no-measure", "--layers"],
        ["show", "o.onnx", "--nodes"],
    ):
        code, out, err = graphopt(*argv)
        assert code == 0, err
        assert re.search(r"[\x00-\x09\x0b-\x1f\x7f\u202e]", out + err) is None, argv
    code, out, err = graphopt("inspect", "h.onnx")
    for shown in (
        "o[/x]",
        "o[red]y[/red]",
        "o:smile:",
        r"o\x1b]0;t\x07\x1b[31m",
        r"oa\nb",
        r"o\u202e",
    ):
        assert shown in out


def test_advice_in_brackets_is_whole(folder):
    from graphopt.errors import MissingExtra
    from graphopt.reporting.text import out

    with Path("t.txt").open("w") as file:
        out(file).print(str(MissingExtra("openvino", "target 'openvino'")))
    assert "graphopt[openvino]" in Path("t.txt").read_text()


def test_errors_show_control_characters_escaped(folder, graphopt):
    proto = onnx.load("model.onnx")
    proto.graph.node[0].input[0] = "\x1b[31mnone"
    onnx.save(proto, "e.onnx")
    code, _, err = graphopt("inspect", "e.onnx")
    assert (code, err.count("\n")) == (3, 1)
    assert "\x1b" not in err


@pytest.mark.skipif(sys.platform != "linux", reason="names are Unicode elsewhere")
def test_names_that_are_no_utf8_are_shown_and_kept(folder):
    source = os.fsencode(folder) + b"/m\xff\xc3\xbc.onnx"
    os.rename("model.onnx", source)
    for env in ({}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}):
        argv = [
            *COMMAND,
            "optimize",
            source,
            "-p",
            "clean",
            "--no-measure",
            "--report",
            b"r\xfe.json",
        ]
        done = subprocess.run(argv, capture_output=True, env={**os.environ, **env})
        assert done.returncode == 0, done.stderr
        assert b"m\\xff" in done.stdout
        names = os.listdir(os.fsencode(folder))
        assert {b"m\xff\xc3\xbc.opt.onnx", b"r\xfe.json"} <= set(names)
        done = subprocess.run([*COMMAND, "inspect", source], capture_output=True)
        assert done.returncode == 0, done.stderr


def test_an_ascii_terminal_shows_all_there_is(folder):
    os.rename("model.onnx", "ü.onnx")
    env = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "TERM": "dumb"}
    for command in ("inspect ü.onnx", "bench ü.onnx --seconds 0.1", "passes", "targets"):
        done = shell(f"graphopt {command}", **env)
        assert done.returncode == 0, done.stderr
        assert done.stdout.isascii()


def test_no_column_is_lost_at_80_columns():
    import io

    from graphopt.reporting.text import _Plain, print_table, table

    heads = ["threads", "batch", "median", "p90", "p99", "per second", "x first", "load", "memory"]
    made = table("model", "target", *[f">{h}" for h in heads])
    for k in range(3):
        made.add_row(f"model{k}.opt.onnx", "openvino", *[f"{k}{j} value" for j in range(9)])
    for width in (80, 60, 200):
        file = io.StringIO()
        print_table(_Plain(file=file, width=width), made, keys=2)
        shown = file.getvalue()
        assert max(len(line) for line in shown.splitlines()) <= width
        for head in heads:
            assert head in shown
        for k in range(3):
            assert all(f"{k}{j} value" in shown for j in range(9))
    assert len(shown.splitlines()) == 4, "one table where it fits"


def test_nothing_is_sent_and_nothing_kept_at_home(folder):
    """The runtime reports to its maker unless told not to; a trace of system calls shows all."""
    home = folder / "home"
    home.mkdir()
    env = {**os.environ, "HOME": str(home), "XDG_CACHE_HOME": str(home / "cache")}
    env.pop("ORT_DISABLE_TELEMETRY", None)
    trap = folder / "trap"
    trap.mkdir()
    (trap / "sitecustomize.py").write_text(
        "import socket, sys\n"
        "def hook(event, args):\n"
        "    if event.startswith('socket.'):\n"
        f"        open({str(folder / 'connected')!r}, 'a').write(f'{{event}} {{args}}\\n')\n"
        "sys.addaudithook(hook)\n"
    )
    env["PYTHONPATH"] = str(trap)
    tracer = ["strace", "-f", "-qq", "-e", "trace=connect,sendto", "-o", str(folder / "calls")]
    traced = (
        subprocess.run([*tracer, "true"], capture_output=True).returncode == 0
        if (any((Path(p) / "strace").exists() for p in os.environ["PATH"].split(":")))
        else False
    )
    for argv in (
        ["optimize", "model.onnx", "-p", "clean,fuse", "-o", "o.onnx", "--no-measure"],
        ["bench", "o.onnx", "--seconds", "0.2"],
    ):
        command = [*(tracer if traced else []), *COMMAND, *argv]
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        if traced:
            assert not re.search(r"AF_INET|AF_INET6|sendto", (folder / "calls").read_text())
    assert not (folder / "connected").exists()
    own = [p for p in home.rglob("*") if p.is_file() and "graphopt" not in p.parts]
    assert own == []
