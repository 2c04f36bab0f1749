"""What a user knows in metres, as cues: depth maps, tables, clouds, control points, foreign models, known lengths."""

from .clip_frames import ClipFrames
from .control_points import ControlPoints
from .georeference import Georeference, georeference
from .measure import (
    Measurement,
    ScaleEstimate,
    distance,
    length_between,
    parse_measure,
    require_one_frame,
    scale_from_measures,
    surface_point,
)
from .read import CountedSource, read_cues
from .scale import MetricScale, metric_scale
from .tally import Tally

__all__ = [
    "ClipFrames",
    "ControlPoints",
    "CountedSource",
    "Georeference",
    "Measurement",
    "MetricScale",
    "ScaleEstimate",
    "Tally",
    "distance",
    "georeference",
    "length_between",
    "metric_scale",
    "parse_measure",
    "read_cues",
    "require_one_frame",
    "scale_from_measures",
    "surface_point",
]
