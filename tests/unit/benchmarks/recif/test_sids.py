import pytest

from genrl.benchmarks.recif.sids import CODES, number_of, read_generation, read_sids, sid_text


@pytest.mark.parametrize("codes", [(0, 0, 0), (8191, 8191, 8191), (1, 0, 8191), (17, 4096, 3)])
def test_text_and_number_are_the_same_sid(codes):
    number = number_of(codes)
    assert number == codes[0] * CODES**2 + codes[1] * CODES + codes[2]
    assert read_sids(sid_text(number)) == [number]
    assert read_generation(sid_text(number), whole=True) == number


SEVEN = "<s_a_0><s_b_0><s_c_7>"


@pytest.mark.parametrize(
    ("text", "whole", "first"),
    [
        (f"<|sid_begin|>{SEVEN}<|sid_end|>", 7, 7),
        (SEVEN, 7, 7),
        (f"  {SEVEN}\n", 7, 7),
        (f"<think>{SEVEN.replace('7', '1')}</think>\n<|sid_begin|>{SEVEN}", 7, 7),
        (f"<|sid_begin|>{SEVEN}{SEVEN.replace('7', '1')}<|sid_end|>", None, 7),
        (f"it is {SEVEN}", None, 7),
        (f"it is <|sid_begin|>{SEVEN}<|sid_end|>", None, 7),
        (f"<|sid_begin|>{SEVEN}<|sid_end|> and more", 7, 7),
        ("<s_a_0><s_b_0>", None, None),
        ("<s_a_0><s_b_8192><s_c_7>", None, None),
        ("", None, None),
        (f"{SEVEN}</think>", None, None),
    ],
)
def test_a_generation_names_a_sid_as_the_evaluator_reads_it(text, whole, first):
    assert read_generation(text, whole=True) == whole
    assert read_generation(text, whole=False) == first
