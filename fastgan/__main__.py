"""python -m fastgan: the same as the `fastgan` command."""

from fastgan.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
