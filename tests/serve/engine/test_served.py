from serve.engine.jobs import Served


def test_a_model_without_a_second_pass_takes_the_scale_alone_at_which_it_reads_the_prompt() -> None:
    """FLUX.1 Fill, and distilled networks."""
    served = Served(native_px=1024, sizes=((1024, 1024),), has_reward=False, is_guided=False)
    assert served.takes(None)
    assert served.takes(1.0)
    assert not served.takes(7.5)
    assert Served(native_px=1024, sizes=((1024, 1024),), has_reward=False).takes(7.5)
    assert served.reads()["guidance_scale"] == {"unguided": 1.0, "others": False}


def test_clients_are_told_at_which_sizes_pictures_are_painted() -> None:
    served = Served(native_px=64, sizes=((32, 128), (64, 64)), has_reward=False)
    assert served.reads()["sizes"] == "any, painted in the nearest shape, width x height, of 128x32, 64x64 px"
