"""How good depth is on real pictures: data sets, protocol, figures, baselines, intervals and tables."""

from .frames import judge_frames

__all__ = ["judge_frames"]
