"""The command line. It imports only typer and settings; every command loads the rest when it runs."""

from .app import app as app
from .app import main as main
