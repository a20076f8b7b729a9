"""The desk: an offline world of real handwriting with exact ground truth for every kind of supervision."""

from weft.data.desk.scans import Split
from weft.data.desk.scene import DigitObject, Scene, ShapeObject
from weft.data.desk.world import Desk, DeskItem

__all__ = ["Desk", "DeskItem", "DigitObject", "Scene", "ShapeObject", "Split"]
