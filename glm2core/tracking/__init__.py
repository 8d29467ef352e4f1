"""MLflow tracking of the stages; see stage_run.py."""

from glm2core.tracking.headlines import headlines
from glm2core.tracking.stage_run import StageRun, stage_run

__all__ = ["StageRun", "headlines", "stage_run"]
