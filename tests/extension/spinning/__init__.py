"""A package from outside: it learns by which angle a bar is rotated.

`config.packages=("tests.extension.spinning",)` imports it, and it makes its
operator, host, task and source known.
"""

import halonet
from tests.extension.spinning.host import MixerNet
from tests.extension.spinning.operator import Depthwise
from tests.extension.spinning.source import Bars
from tests.extension.spinning.task import Angle

halonet.register_operator("depthwise", Depthwise)
halonet.register_model("mixer_tiny", MixerNet, image_size=16, width=16)
halonet.register_task("angle", Angle)
halonet.register_source("bars", Bars)
