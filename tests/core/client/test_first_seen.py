"""A URL that becomes another agent's is noticed, however often its manifest was dropped meanwhile."""

from hypothesis import given, strategies as st

from asap_core.client.first_seen import FirstSeen

A, B = "urn:asap:agent:a", "urn:asap:agent:b"
URLS = st.sampled_from(["https://a", "https://b", "https://c"])


@given(st.lists(st.tuples(URLS, st.sampled_from([A, B, "forget", "clear"])), max_size=30))
def test_the_first_at_a_url_stays_its_incumbent(steps: list[tuple[str, str]]) -> None:
    incumbents, model = FirstSeen(), dict[str, str]()
    for url, what in steps:
        match what:
            case "forget":
                incumbents.forget(url)
                model.pop(url, None)
            case "clear":
                incumbents.clear()
                model.clear()
            case _:
                before = model.setdefault(url, what)
                changed = incumbents.check(url, what)
                assert (changed is None) == (before == what)
                if changed is not None:
                    assert (changed.url, changed.expected, changed.found) == (f"{url}:443", before, what)
        assert len(incumbents) == len(model)


def test_the_one_not_seen_for_longest_goes_first() -> None:
    incumbents = FirstSeen(max_urls=2)
    for url in ("https://a", "https://b", "https://a", "https://c"):
        assert incumbents.check(url, A) is None
    assert len(incumbents) == 2
    assert incumbents.check("https://a?secret", A) is None
    changed = incumbents.check("https://c", B)
    assert changed is not None
    assert incumbents.check("https://b", B) is None
