"""Relative depth of video frames. Importing this loads no network library; `load_estimator` does."""

from .protocol import DepthEstimator as DepthEstimator
from .registry import MODELS as MODELS
from .registry import ModelEntry as ModelEntry
from .registry import load_estimator as load_estimator
