# SPDX-License-Identifier: Apache-2.0
"""python -m hybridep.deepep --path: prints the folder to put on PYTHONPATH, so that `deep_ep` and
`hybrid_ep_cpp` are found there.
"""

import argparse

from ._install import FOLDER


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m hybridep.deepep", description=__doc__)
    parser.add_argument(
        "--path", action="store_true", required=True, help="print the folder for PYTHONPATH"
    )
    parser.parse_args()
    print(FOLDER)


main()
