"""`python -m benchmarks COMMAND`; see `benchmarks.commands`."""

import sys


def main() -> None:
    if sys.argv[1:2] == ["gpu"]:  # on a machine that may have torch and transformers alone
        from benchmarks.gpu import throughput

        throughput.main(sys.argv[2:])
    else:
        from benchmarks import commands

        commands.main()


if __name__ == "__main__":
    main()
