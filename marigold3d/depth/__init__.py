"""Relative depth of video frames. Importing this loads no network library; `load_estimator` does."""

from .catalogue import MODELS as MODELS
from .catalogue import ModelEntry as ModelEntry
from .protocol import DepthEstimator as DepthEstimator
from .registry import load_estimator as load_estimator
from .stream import EstimatedFrame as EstimatedFrame
from .stream import frames_to_read as frames_to_read
from .stream import stream as stream
from .stream import stream_or_waiting as stream_or_waiting
