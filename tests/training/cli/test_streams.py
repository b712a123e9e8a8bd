"""Every command of both programs, with every stream that can fail: its exit code, and the files it writes.

The table is in docs/using/cli.md.
"""

import os
import select
import time

import pytest
import torch

from helpers.forks import Forks
from helpers.streams import TERMINALS, WAYS
from helpers.tiny import evaluation as tiny_eval
from helpers.tiny import model as tiny
from helpers.tiny import odtsr
from helpers.tiny import run as tiny_run
from helpers.tiny.distill_run import config as distill_config
from helpers.tiny.distill_run import write_toml
from teasr_core.cli.commands import build_parser as build_core
from teasr_core.cli.exit_codes import DONE, INTERRUPTED
from training.cli.commands import build_parser as build_trainer
from training.config.toml import to_mapping
from training.run.checkpoint import list_checkpoints, load_checkpoint

pytestmark = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no device that is always full")
MODEL = ["--model", "{in}/base.safetensors", "--dtype", "fp32", "--scale", "1"]
# The cheapest run of each command; {in} is a folder of inputs, {out} an empty one for what is written.
COMMANDS = {
    "upscale": ["teasr_core", "upscale", "{in}/pictures", "-o", "{out}/out", "--json", "{out}/r.json", *MODEL],
    "compare": ["teasr_core", "compare", "{in}/pictures", "-o", "{out}/c.png", "--steps", "1,2", *MODEL],
    "info": ["teasr_core", "info", "{in}/base.safetensors"],
    "demo": ["teasr_core", "demo", "-o", "{out}/demo.png", "--dtype", "fp32"],
    "teasr --help": ["teasr_core", "--help"],
    "pretrain": ["training", "pretrain", "{in}/pretrain.toml", "run.output_dir={out}/run"],
    "distill": ["training", "distill", "{in}/distill.toml", "run.output_dir={out}/run"],
    "export": ["training", "export", "{in}/run", "{out}/lora.safetensors"],
    "import-odtsr": ["training", "import-odtsr", "{in}/net.pth", "{out}/lora.safetensors", "{out}/vae.safetensors"],
    "eval": [
        "training", "eval", "{in}/pairs", "{out}/out", "--steps", "1", "--pyiqa", "none", "--dtype", "fp32",
        "--model", "tiny={in}/base.safetensors",
    ],
    "degrade": ["training", "degrade", "{in}/photos", "{out}/pairs"],
    "cache-prompt": ["training", "cache-prompt", "--text-encoder", "{in}/encoder", "{out}/prompt.safetensors"],
    "bench": [
        "training", "bench", "--layers", "1", "--heads", "2", "--width", "32", "--steps", "1", "--json", "{out}/b.json",
        "train.crop_px=32", "adapter.rank=2", "base.dtype=fp32", "run.autocast=false", "run.device=cpu",
    ],
    "doctor": ["training", "doctor"],
    "teasr-train --help": ["training", "--help"],
}  # fmt: skip
# What makes a run long enough to be still at work when the terminal goes, and the sign that it is at work: what it
# prints, or a file that it writes.
LONG = {
    "upscale": (["--steps", "30", "--scale", "8"], "0.png: "),
    "compare": (["--steps", "1,30", "--scale", "8"], "1 step"),
    "demo": ([], "1 step"),
    "pretrain": (["stages.0.steps=2000"], "step 1 "),
    "distill": (["train.steps=2000"], "step 1 "),
    "eval": (["--steps", "1,2,4,8,30"], "{out}/out/scores.csv"),
    "degrade": ([], "{out}/pairs/test_LR"),
    "bench": (["--steps", "1000"], "peak"),
}


# What the commands import, once for all of them.
MODULES = (
    "teasr_core.cli.upscale", "teasr_core.cli.compare", "teasr_core.cli.demo", "skimage.data", "scipy.ndimage",
    "diffusers.models.transformers.transformer_qwenimage", "diffusers.models.autoencoders.autoencoder_kl_qwenimage",
    "training.cli.eval_run", "training.bench.step", "training.export.odtsr", "matplotlib.figure",
    "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl",
)  # fmt: skip
PRETRAIN = """
[run]
output_dir = "set by the command"
threads = 1
workers = 0
autocast = false
device = "cpu"
use_tensorboard = false
log_every = 1
[data]
folders = ["{photos}"]
cache_mb = 20
{model}
[[stages]]
steps = 2
crop_px = 32
batch_size = 2
data_share = 1.0
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The inputs of all commands (`folder`), the process that starts them, and what each does undisturbed."""
    from helpers.tiny.text_encoder import write_text_encoder

    folder = tmp_path_factory.mktemp("in")
    tiny.write_assets(folder / "assets")
    base = tiny.write_base(folder / "base.safetensors")
    (folder / "pictures").mkdir()
    for k in range(2):
        tiny.write_picture(folder / "pictures" / f"{k}.png")
    tiny_eval.write_pairs(folder / "pairs", 2, side=64)
    photos = tiny_run.write_photos(folder / "photos", 4)
    write_text_encoder(folder / "encoder")
    torch.save(odtsr.checkpoint(), folder / "net.pth")
    (folder / "pretrain.toml").write_text(
        PRETRAIN.replace("{photos}", str(photos)).replace("{model}", tiny_run.model_toml(1))
    )
    config = distill_config(photos, base, folder / "run", train={"steps": 2}, run={"log_every": 1})
    write_toml(folder / "distill.toml", config)
    forks = Forks(folder / "log.txt", *MODULES)
    forks.wait(forks.start("helpers.tiny.distill_run:train", to_mapping(config)))  # the run that is exported
    yield World(forks, folder, tmp_path_factory.mktemp("undisturbed"))
    forks.close()


class World:
    def __init__(self, forks, folder, undisturbed):
        self.forks, self.folder, self.undisturbed = forks, folder, undisturbed
        self.known = {}

    def start(self, out, command, way, more=(), terminal=""):
        """The number of the process. What it is told is in `told.txt` beside the files it writes."""
        out.mkdir()
        program, *arguments = [
            text.replace("{in}", str(self.folder)).replace("{out}", str(out)) for text in (*COMMANDS[command], *more)
        ]
        told = str(out.with_suffix(".txt"))
        assets = str(self.folder / "assets")
        return self.forks.start("helpers.streams:run", program, arguments, way, told, assets, terminal)

    def expected(self, command):
        """(exit code, files) where nothing fails."""
        if command not in self.known:
            out = self.undisturbed / command.replace(" ", "")
            code = self.forks.wait(self.start(out, command, "undisturbed"))
            self.known[command] = code, files_in(out)
        return self.known[command]


def files_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def check_told(path):
    told = path.read_text() if path.exists() else ""
    assert not [word for word in ("Traceback", "Errno", "Exception", "Broken pipe") if word in told], told


def wait_until_at_work(terminal, sign, seconds=120):
    """Read the terminal until it, or the file system, shows the sign."""
    told, end = "", time.monotonic() + seconds
    while sign not in told and not os.path.exists(sign):
        assert time.monotonic() < end, told
        if select.select([terminal], [], [], 0.01)[0]:
            told += os.read(terminal, 4096).decode(errors="replace")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("command", COMMANDS)
def test_the_work_is_done_whatever_fails(world, tmp_path, command, way):
    out = tmp_path / "out"
    code = world.forks.wait(world.start(out, command, way))
    assert (code, files_in(out)) == world.expected(command)
    check_told(tmp_path / "out.txt")


def test_undisturbed_each_command_does_its_work(world):
    """Against a table in which nothing works alike."""
    found = {command: world.expected(command) for command in COMMANDS}
    assert {command for command, (code, _) in found.items() if code != DONE} <= {"doctor"}, found
    silent = {command for command, (_, files) in found.items() if not files}
    assert silent == {"info", "doctor", "teasr --help", "teasr-train --help"}


def test_no_command_is_forgotten():
    for program, build in (("teasr_core", build_core), ("training", build_trainer)):
        names = {arguments[1] for arguments in COMMANDS.values() if arguments[0] == program}
        assert set(build()._subparsers._group_actions[0].choices) == names - {"--help"}


@pytest.mark.parametrize("way", TERMINALS)
@pytest.mark.parametrize("command", LONG)
def test_a_terminal_that_is_closed(world, tmp_path, command, way):
    """Ignored (nohup, disown), the work is done in silence. Otherwise it ends as after SIGTERM."""
    out = tmp_path / "out"
    ours, theirs = os.openpty()
    more, sign = LONG[command]
    pid = world.start(out, command, way, more if way == "hang-up" else (), os.ttyname(theirs))
    wait_until_at_work(ours, sign.replace("{out}", str(out)))
    os.close(theirs)
    os.close(ours)
    code = world.forks.wait(pid)
    check_told(tmp_path / "out.txt")
    if way == "hang-up ignored":
        assert (code, files_in(out)) == world.expected(command)
        return
    assert not [name for name in files_in(out) if name.endswith((".tmp", ".lock"))]
    if command in ("pretrain", "distill"):
        assert code == DONE
        load_checkpoint(list_checkpoints(out / "run")[-1])
    else:
        assert code == INTERRUPTED
