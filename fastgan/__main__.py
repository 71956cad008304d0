"""The `fastgan` command, and `python -m fastgan`."""

from __future__ import annotations

from fastgan.terminal import nothing_begun


def main() -> int:
    """Run the command in sys.argv; returns its exit status."""
    with nothing_begun():
        from fastgan.cli import main as run
    return run()


if __name__ == "__main__":
    raise SystemExit(main())
