"""What a run tells while it goes on: TensorBoard event files, validation.csv, and lines on stderr."""

from __future__ import annotations

import csv
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from marigold3d.atomic import atomic_path, output_error
from training.recipe.validation import Judgement

FIELDS = ("step", "samples", "abs_rel", "delta1", "loss", "rate", "seconds")


class Monitor(Protocol):
    """Hears what happens; `Silent` on all processes but the first."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None: ...

    def judged(self, step: int, judgement: Judgement, row: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class Silent:
    """Writes nothing."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        pass

    def judged(self, step: int, judgement: Judgement, row: Mapping[str, float]) -> None:
        pass

    def close(self) -> None:
        pass


class EventFiles:
    """TensorBoard files in `out/tensorboard` and a row a validation in `out/validation.csv`.

    What an interrupted run wrote beyond `step`, where this one begins, is dropped from both.
    """

    def __init__(self, out: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        try:
            self.writer = SummaryWriter(str(out / "tensorboard"), purge_step=step if step else None)
        except OSError as error:
            raise output_error(out / "tensorboard", error) from error
        self.table = out / "validation.csv"
        keep_rows(self.table, step)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def judged(self, step: int, judgement: Judgement, row: Mapping[str, float]) -> None:
        self.scalars(step, {"validation/abs_rel": judgement.abs_rel, "validation/delta1": judgement.delta1})
        for number, picture in enumerate(judgement.pictures):
            self.writer.add_image(f"samples/{number} (image, prediction, truth)", picture, step)
        self.writer.flush()
        try:
            with self.table.open("a", newline="") as file:
                csv.DictWriter(file, FIELDS).writerow({key: row[key] for key in FIELDS})
        except OSError as error:
            raise output_error(self.table, error) from error
        text = f"step {step}: loss {row['loss']:.4f}, AbsRel {judgement.abs_rel:.4f}, delta1 {judgement.delta1:.1%}"
        print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        self.writer.close()


def keep_rows(table: Path, step: int) -> None:
    """Leave the rows of a validation table up to `step`, and its heading; make it if it is not there."""
    rows = [row for row in read_rows(table) if row["step"] <= step] if table.exists() and step else []
    with atomic_path(table) as partial, partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(rows)


def read_rows(table: Path) -> list[dict[str, float]]:
    """The rows of a validation table as numbers."""
    with table.open(newline="") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
