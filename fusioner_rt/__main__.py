"""`fusioner-rt`, which is `python -m fusioner_rt`."""

import sys


def main() -> int:
    """Run the command line. Returns the exit code."""
    try:
        from .cli import main as run  # takes long enough to be interrupted

        return run()
    except KeyboardInterrupt:
        print("fusioner-rt: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
