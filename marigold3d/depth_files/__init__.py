"""`marigold3d depth`: images, folders and clips become files of relative depth, resumable, in bounded memory."""

from .run import Report as Report
from .run import estimate_files as estimate_files
from .settings import FORMATS as FORMATS
from .settings import OutputConfig as OutputConfig
