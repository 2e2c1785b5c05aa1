# SPDX-License-Identifier: Apache-2.0
"""What launchers tell the processes that they start."""

from __future__ import annotations

import itertools
import os
import pathlib
import tempfile
from typing import List, NamedTuple, Optional

from ._errors import InvalidUsageError


class Launcher(NamedTuple):
    """Names of environment variables. Those that a launcher does not set are empty."""

    name: str
    rank: str
    num_ranks: str
    local_rank: str
    num_local_ranks: str
    job: List[str]


_LAUNCHERS = [
    Launcher("torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", []),
    Launcher(
        "Open MPI",
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
        ["PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid"],
    ),
    Launcher("MPICH", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS", ["PMI_JOBID"]),
]


class Place(NamedTuple):
    """What a launcher has told this process."""

    launcher: Launcher
    rank: int
    num_ranks: int
    local_rank: int
    is_one_machine: bool


def _number(variable: str, otherwise: int) -> int:
    return int(os.environ.get(variable) or otherwise)


def find_place() -> Place:
    """This process' rank and the number of ranks, as torchrun or mpirun say."""
    for launcher in _LAUNCHERS:
        if launcher.rank in os.environ and launcher.num_ranks in os.environ:
            rank, num_ranks = _number(launcher.rank, 0), _number(launcher.num_ranks, 1)
            return Place(
                launcher,
                rank,
                num_ranks,
                _number(launcher.local_rank, rank),
                _number(launcher.num_local_ranks, 0) == num_ranks,
            )
    names = ", ".join(f"{launcher.rank} and {launcher.num_ranks}" for launcher in _LAUNCHERS)
    raise InvalidUsageError(f"no launcher has told this process its rank: none of {names} is set")


_numbers = itertools.count()


def job_file(place: Place) -> Optional[pathlib.Path]:
    """A file that only the processes of this job know, or None without the job's name. Each call
    gives another one; all processes call it equally often.
    """
    for variable in place.launcher.job:
        job = os.environ.get(variable)
        if job:
            name = "".join(letter if letter.isalnum() else "-" for letter in job)
            file = f"hybridep-{os.geteuid()}-{name}-{next(_numbers)}"
            return pathlib.Path(tempfile.gettempdir()) / file
    return None
