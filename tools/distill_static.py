"""Makes the static model that model2vec distils of a teacher: ``python tools/distill_static.py TEACHER OUT``.

It is what one would use instead of a student where speed is all: a table of the teacher's vectors of single tokens. The
teacher embeds every token of its vocabulary once, 262 thousand for EmbeddingGemma, which takes the better part of an
hour on two cores.
``leaf compare`` and ``leaf benchmark --static`` take the folder.
"""

import argparse
import shutil
from pathlib import Path

from leafembed.contenders import distill_static
from leafembed.learn.models import resolve


def main() -> None:
    """Make it, unless it is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher", help="folder, hub id with a commit as NAME@COMMIT, or package:NAME")
    parser.add_argument("out", type=Path, help="folder to write")
    args = parser.parse_args()
    if (args.out / "model.safetensors").is_file():
        parser.exit(0, f"{args.out} is there\n")
    if args.out.exists():
        parser.error(f"{args.out}: got a folder with something else in it, expected none")
    name, _, commit = args.teacher.partition("@")
    partial = args.out.with_name(f".{args.out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a call that was interrupted
    distill_static(resolve(name, commit or None), partial)
    partial.replace(args.out)


if __name__ == "__main__":
    main()
