"""placeholder"""

from drivers.wire.tap.replay import Replay


class ElasticReplay(Replay):
    """x"""
