"""Options: published defaults, every flag, and each refusal in one sentence."""

import json
import shlex
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from types import ModuleType

import pytest

from sgm import specs
from sgm.cli import checks, report
from sgm.cli import main as cli
from sgm.cli.generate import backend_of
from sgm.cli.options import EPILOG
from sgm.errors import UserError
from sgm.specs import MODELS, model_spec
from sgm.words import Backend, Mode, Precision, Preset, RunType, Task
from tests.conftest import ROOT

pytest_plugins = ["tests.cli.cli_folder"]

INPAINT = ["--prompt", "a horse", "--init_img", "init.png", "--mask_path", "mask.npy"]
SDEDIT = ["--task", "sdedit", "--prompt", "a beach", "--edited_img", "edited.png"]
PAIR = [*SDEDIT, "--init_img", "init.png"]


def test_published_defaults(folder: Path) -> None:
    options = cli.parse(INPAINT)
    assert (options.task, options.run_type, options.mode) == (
        Task.INPAINTING,
        RunType.ORIGINAL,
        Mode.GENERATE,
    )
    assert (options.preset, options.precision, options.backend, options.device) == (
        Preset.PUBLISHED,
        Precision.FP32,
        Backend.AUTO,
        "cpu",
    )
    sampling = options.sampling
    assert (sampling.seed, sampling.steps, sampling.scale, sampling.strength) == (2, None, 6.0, 0.8)
    assert (options.height, options.width, options.refined) == (None, None, False)
    assert options.output_path == Path("outputs/inpainting-original-2.png")
    assert (options.config_path, options.weight_path) == (Path("configs"), Path("pretrained"))
    assert options.spec is MODELS["sdxl"] and not options.random_weights and not options.macs_only


def test_every_option(folder: Path) -> None:
    words = "--run_type sige-turbo --mode profile_decoder --negative_prompt fog --seed 7 --steps 3"
    words += " --scale 0 --strength 1 --ddim_eta 0 --H 30 --W 20 --C 4 --f 8 --refined yes"
    words += " --precision bf16 --backend torch --preset fast --device cpu --json - --macs_only"
    words += " --random_weights --output_path a/b.JPG --config_path configs --weight_path configs"
    options = cli.parse([*PAIR, *words.split()])
    assert options.run_type is RunType.SIGE_TURBO and options.mode is Mode.PROFILE_DECODER
    assert options.sampling.negative_prompt == "fog" and options.sampling.steps == 3
    assert (options.height, options.width) == (30, 20)
    assert options.refined and options.macs_only and options.random_weights
    assert options.json_path == "-" and options.output_path == Path("a/b.JPG")


@pytest.mark.parametrize(
    ("words", "expected"),
    [([], False), (["--refined"], True), (["--refined", "True"], True)]
    + [(["--refined", word], word in ("yes", "TRUE", "1")) for word in ("False", "no", "yes", "1")],
)
def test_refined_means_what_it_says(words: list[str], expected: bool, folder: Path) -> None:
    assert cli.parse([*words, *INPAINT]).refined is expected


REFUSED = {
    "unknown option": ([*INPAINT, "--promt", "x"], r"'--promt' \(did you mean --prompt\?\)"),
    "mistyped prompt": (["--promt", "x"], "did you mean --prompt"),
    "unknown with =": ([*INPAINT, "--sed=3"], r"'--sed' \(did you mean --seed\?\)"),
    "no abbreviations": ([*INPAINT, "--neg", "x"], "Unknown option '--neg'"),
    "stray word": ([*INPAINT, "horse"], "Unknown word 'horse'"),
    "no prompt": (INPAINT[2:], "--prompt is missing"),
    "no value": ([*INPAINT, "--seed"], "--seed: expected one argument"),
    "task": ([*INPAINT, "--task", "inpaint"], "did you mean inpainting"),
    "run type": ([*INPAINT, "--run_type", "orignal"], "did you mean original"),
    "mode": ([*INPAINT, "--mode", "profile"], "profile_unet"),
    "preset": ([*INPAINT, "--preset", "fats"], "did you mean fast"),
    "precision": ([*INPAINT, "--precision", "bf61"], "did you mean bf16"),
    "backend": ([*INPAINT, "--backend", "troch"], "did you mean torch"),
    "mode nearest": ([*INPAINT, "--mode", "profile_unte"], "did you mean profile_unet"),
    "model nearest": ([*INPAINT, "--model", "tinny"], "did you mean tiny"),
    "strength 1.2": ([*INPAINT, "--strength", "1.2"], "up to 1"),
    "width too large": ([*INPAINT, "--W", "9000"], "whole number from 1 to 8192"),
    "height no number": ([*INPAINT, "--H", "tall"], "got 'tall'"),
    "negative steps": ([*INPAINT, "--steps", "-5"], "from 1 to 1000"),
    "empty picture name": ([*INPAINT, "--init_img", ""], "is a folder|does not exist"),
    "folder as mask": ([*INPAINT, "--mask_path", "configs"], "is a folder"),
    "output through a file": ([*INPAINT, "--output_path", "init.png/a.png"], "is not a folder"),
    "model": ([*INPAINT, "--model", "huge"], "choose one of sdxl, tiny"),
    "steps 0": ([*INPAINT, "--steps", "0"], "whole number from 1 to 1000"),
    "steps 1.5": ([*INPAINT, "--ddim_steps", "1.5"], "got '1.5'"),
    "turbo steps": (
        [*INPAINT, "--run_type", "sige-turbo", "--steps", "5"],
        "--steps 5 came, but --run_type sige-turbo knows 4 noise levels; give 1 to 4",
    ),
    "steps 1001": ([*INPAINT, "--steps", "1001"], "from 1 to 1000"),
    "seed -1": ([*INPAINT, "--seed", "-1"], "from 0 to"),
    "seed 2**64": ([*INPAINT, "--seed", str(2**64)], "from 0 to"),
    "strength 0": ([*INPAINT, "--strength", "0"], "above 0 and up to 1"),
    "strength 1.1": ([*INPAINT, "--strength", "1.1"], "up to 1"),
    "strength nan": ([*INPAINT, "--strength", "nan"], "got 'nan'"),
    "scale -1": ([*INPAINT, "--scale", "-1"], "from 0"),
    "scale inf": ([*INPAINT, "--scale", "inf"], "got 'inf'"),
    "height 0": ([*INPAINT, "--H", "0"], "from 1 to"),
    "eta": ([*INPAINT, "--ddim_eta", "0.5"], "the solver is deterministic; leave it out"),
    "channels": ([*INPAINT, "--C", "16"], "every model here has 4"),
    "factor": ([*INPAINT, "--f", "16"], "every model here has 8"),
    "refined": ([*INPAINT, "--refined", "perhaps"], "true or false"),
    "no picture": ([*INPAINT[:2], *INPAINT[4:]], "needs --init_img"),
    "no mask": (INPAINT[:4], "needs --mask_path"),
    "no edited": (SDEDIT[:4], "needs --edited_img"),
    "sige alone": ([*SDEDIT, "--run_type", "sige"], "needs --init_img, the picture before"),
    "weights": ([*INPAINT, "--random_weights"], "--random_weights is for the profile modes"),
    "macs": ([*INPAINT, "--macs_only"], "--macs_only is for the profile modes"),
    "missing picture": ([*INPAINT, "--init_img", "int.png"], r"did you mean init\.png"),
    "missing mask": ([*INPAINT, "--mask_path", "no/mask.npy"], "does not exist"),
    "folder": ([*INPAINT, "--init_img", "."], "is a folder"),
    "output": ([*INPAINT, "--output_path", "a.xyz"], "end the name in one of"),
    "output folder": ([*INPAINT, "--output_path", "configs"], "no extension|is a folder"),
    "json folder": ([*INPAINT, "--json", "configs"], "is a folder"),
    "json twice": ([*INPAINT, "--json", "a.png", "--output_path", "a.png"], "name two files"),
    "configs": ([*INPAINT, "--config_path", "nowhere"], "check --config_path"),
    "checkpoint": ([*INPAINT, "--weight_path", "nowhere"], "stable-diffusion-xl-base-1.0 to"),
    "tiny checkpoint": (
        [*INPAINT, "--model", "tiny", "--weight_path", "nowhere"],
        "check --weight_path",
    ),
    "cuda": ([*INPAINT, "--device", "cuda"], "use --device cpu"),
    "device": ([*INPAINT, "--device", "gpu"], "expected cpu, cuda"),
    "fp16": ([*INPAINT, "--precision", "fp16"], "fp16 needs a GPU"),
    "tf32": ([*INPAINT, "--precision", "tf32"], "tf32 needs a CUDA device"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_are_one_sentence(name: str, folder: Path) -> None:
    argv, expected = REFUSED[name]
    before = sorted(folder.rglob("*"))
    with pytest.raises(UserError, match=expected) as caught:
        cli.main(argv)
    message = str(caught.value)
    assert message.endswith(".") and not message.endswith("..") and "\n" not in message
    assert sorted(folder.rglob("*")) == before


def test_backends_that_are_not_installed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks.importlib.util, "find_spec", lambda name: None)
    for backend in ("triton", "sige"):
        with pytest.raises(UserError, match=f"needs the package {backend}"):
            cli.parse([*INPAINT, "--backend", backend])
    with pytest.raises(UserError, match=r"run `python -m tools\.install_sige`"):
        cli.parse([*INPAINT, "--backend", "sige"])
    monkeypatch.setattr(checks.importlib.util, "find_spec", lambda name: object())
    for words in (["--preset", "fast"], ["--precision", "bf16"]):
        with pytest.raises(UserError, match="--preset published at fp32 only"):
            cli.parse([*INPAINT, "--backend", "sige", *words])
    monkeypatch.setitem(sys.modules, "sige.cpu", None)  # importing it raises ImportError
    with pytest.raises(UserError, match=r"no kernels of the package sige for cpu .* build it anew"):
        cli.parse([*INPAINT, "--backend", "sige"])
    monkeypatch.setitem(sys.modules, "sige.cpu", ModuleType("sige.cpu"))
    assert cli.parse([*INPAINT, "--backend", "sige"]).backend is Backend.SIGE
    with pytest.raises(UserError, match="needs a CUDA device and the device is cpu"):
        cli.parse([*INPAINT, "--backend", "triton", "--device", "cpu"])


def test_unused_pictures_are_named(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    cli.parse([*INPAINT, "--edited_img", "edited.png"])
    assert "--edited_img is not used" in caplog.text


def test_a_negative_prompt_that_does_nothing_is_named(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = [*INPAINT, "--run_type", "turbo"]
    cli.parse(words)
    cli.parse([*words, "--negative_prompt", "fog", "--refined"])  # the refiner reads it
    assert "no effect" not in caplog.text
    cli.parse([*words, "--negative_prompt", "fog"])
    assert "--negative_prompt and --scale have no effect" in caplog.text


def test_default_folders_are_found_beside_the_program(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(specs, "SHIPPED", folder)
    (folder / "elsewhere" / "pretrained").mkdir(parents=True)
    monkeypatch.chdir(folder / "elsewhere")
    argv = ["--prompt", "x", "--init_img", "../init.png", "--mask_path", "../mask.npy"]
    assert cli.parse(argv).weight_path == folder / "pretrained"  # this one holds nothing
    # One that holds a file of the model is meant; another model's files do not count.
    Path("pretrained/sd_xl_base_1.0.safetensors").touch()
    assert cli.parse(argv).weight_path == Path("pretrained")
    assert cli.parse([*argv, "--model", "tiny"]).weight_path == folder / "pretrained"
    with pytest.raises(UserError, match=r"^Checkpoint pretrained/sd_xl_turbo_1\.0"):
        cli.parse([*argv, "--run_type", "turbo"])


def test_profiling_needs_no_checkpoint_with_random_weights(folder: Path) -> None:
    argv = [*INPAINT, "--mode", "profile_unet", "--random_weights", "--weight_path", "nowhere"]
    assert cli.parse(argv).random_weights


def test_model_table() -> None:
    sdxl, tiny = model_spec("sdxl"), model_spec("tiny")
    assert sdxl.weights[sdxl.weight_role(RunType.SIGE_TURBO)] == "sd_xl_turbo_1.0.safetensors"
    assert sdxl.config_file(RunType.SIGE, refiner=True) == "sige-refiner.yaml"
    assert sdxl.config_file(RunType.TURBO) == "original.yaml"
    assert tiny.config_file(RunType.SIGE) == "tiny-sige.yaml" and tiny.trained_size == (256, 512)
    with pytest.raises(UserError, match="did you mean tiny"):
        model_spec("tinny")


def run(*words: str, code: str | None = None) -> subprocess.CompletedProcess[str]:
    """The program, or a snippet, in a process of its own."""
    start = [str(ROOT / "run.py")] if code is None else ["-c", code]
    command = [sys.executable, *start, *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)


def test_help_lists_every_flag_and_imports_nothing_heavy() -> None:
    shown = run("--help")
    assert shown.returncode == 0 and not shown.stderr
    flags = "task run_type mode prompt negative_prompt seed init_img edited_img mask_path strength"
    flags += " refined output_path config_path weight_path device H W C f ddim_steps steps scale"
    flags += " ddim_eta model preset precision backend random_weights macs_only json"
    for flag in flags.split():
        assert f"--{flag}" in shown.stdout, flag
    for default in ("50", "6.0", "0.8", "configs", "pretrained", "original", "inpainting"):
        assert f"(default: {default})" in " ".join(shown.stdout.split()), default
    code = "from sgm.cli import main\ntry: main.main(['--help'])\nexcept SystemExit: pass\n"
    code += "import sys\nheavy = {'torch', 'numpy', 'PIL'} & set(sys.modules)\n"
    code += "sys.exit(str(heavy or ''))"
    assert run(code=code).stderr == "\n"


def test_settings_hold_every_input_as_json_gives_it_back(folder: Path) -> None:
    words = [*INPAINT, "--run_type", "sige", "--preset", "fast", "--device", "cpu", "--seed", "5"]
    words += ["--negative_prompt", "fog", "--scale", "3", "--strength", "0.5", "--refresh", "3"]
    options = cli.parse(words)
    settings = report.settings(options)
    held = {field.name for one in (options, options.sampling) for field in fields(one)}
    assert set(settings) == held - {"json_path", "sampling"}
    assert json.loads(json.dumps(settings)) == settings
    asked = {"prompt": options.sampling.prompt, "negative_prompt": "fog", "steps": 50, "seed": 5}
    asked |= {"scale": 3.0, "strength": 0.5, "task": "inpainting", "preset": "fast"}
    asked |= {"init_img": str(options.init_img), "mask_path": str(options.mask_path)}
    assert {name: settings[name] for name in asked} == asked
    assert settings["recordings"]["every"] == 3
    turbo = cli.parse([*INPAINT, "--run_type", "turbo"])
    assert report.settings(turbo)["steps"] == 4


def test_the_backend_of_a_run(folder: Path) -> None:
    words = [*INPAINT, "--device", "cpu"]
    assert backend_of(cli.parse([*words, "--run_type", "sige"])) == "torch"  # what `auto` is there
    assert backend_of(cli.parse(words)) is None  # a dense run has none


@pytest.mark.parametrize("number", [0, 1])
def test_the_examples_of_the_help_run_in_a_fresh_clone(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    lines = EPILOG.replace("\\\n", " ").splitlines()
    examples = [line for line in lines if line.strip().startswith("python run.py")]
    assert len(examples) == 2
    # Every file is looked for, weights included, and those of SDXL are not in the repository.
    assert cli.parse(shlex.split(examples[number])[2:]).model == "tiny"


def test_a_bad_option_exits_2_with_one_line() -> None:
    failed = run("--prompt", "x", "--strength", "2")
    assert failed.returncode == 2 and not failed.stdout
    assert failed.stderr == "run.py: --strength: got '2'; give a number above 0 and up to 1.\n"


def test_an_interrupt_exits_130_without_a_traceback() -> None:
    code = (
        "import runpy, sgm.cli.main\ndef stop(): raise KeyboardInterrupt\n"
        "sgm.cli.main.main = stop\n"
        "runpy.run_path('run.py', run_name='__main__')"
    )
    stopped = run(code=code)
    assert (stopped.returncode, stopped.stderr) == (130, "run.py: interrupted\n")
