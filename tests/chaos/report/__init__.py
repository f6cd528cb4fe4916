"""The report of a chaos run: one HTML file that opens from disk, and a picture of its timeline."""

from tests.chaos.report.picture import png_of_timeline
from tests.chaos.report.writing import write_report

__all__ = ["png_of_timeline", "write_report"]
