"""One question about each of many pictures, on one machine or a cluster, by Ray Data."""

try:
    import ray.data  # noqa: F401
except ImportError as error:
    raise ImportError(f"batch jobs need Ray, which is not installed ({error}); pip install 'gprune[ray]'") from error

from .host import RAY

with RAY.checked():
    from .engine import Engine
    from .inputs import Columns
    from .job import Job, Progress, Summary, run
    from .process import InProcess
    from .server import Server

__all__ = ["Columns", "Engine", "InProcess", "Job", "Progress", "Server", "Summary", "run"]
