"""kill -9 of a service and of its workers, while clients search and report: nothing that was acknowledged is lost."""

from kill_storm import Storm, rage


def test_nothing_acknowledged_is_lost_when_service_and_workers_are_killed(tmp_path):
    left = rage(tmp_path, Storm(kills=2, worker_kills=1, searches=6, windows=60, runs=2), patience_s=240.0)
    assert (left.searches_lost, left.windows_lost) == (0, 0)
    assert (left.searches_doubled, left.windows_doubled) == (0, 0)
    assert (left.searches_acknowledged, left.windows_acknowledged) == (6, 60)
