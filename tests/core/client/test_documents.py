"""Documents by URL: fetched once for all who ask, and refreshed for callers that miss something in them."""

from typing import Any

from asap_core.client.body_reader import WholeParser
from asap_core.client.documents import Documents
from asap_core.client.fetch_results import Source
from asap_core.client.programs import Fetch
from asap_core.client.requests import Requests
from asap_core.net.outbound import OutboundPolicy
from tests.core.client.scripted import After, Answer, Driver

URL = "http://localhost/keys.json"


class Keys(Driver):
    """A server's key sets: it has a newer one for each request, which takes a second."""

    def __init__(self, **options: Any) -> None:
        super().__init__(self._answer)
        self.asked = 0
        self.status = 200
        requests = Requests(self.runtime, policy=OutboundPolicy())
        settings = {"parser": lambda: WholeParser(bytes), "limit": 100, "policy": None, **options}
        self.documents: Documents[bytes] = Documents(self.runtime, requests, **settings)

    def _answer(self, _fetch: Fetch) -> After:
        self.asked += 1
        return After(1.0, Answer(self.status, body=b"%d" % self.asked))


class TestRefreshing:
    def test_many_callers_share_one_request(self) -> None:
        server = Keys()
        assert server.run(server.documents.find(URL)).document == b"1"
        server.advance(60)
        runs = [server.start(server.documents.refresh(URL, cool_down=60)) for _ in range(100)]
        server.advance(1)
        assert ([run.result().document for run in runs], server.asked) == ([b"2"] * 100, 2)

    def test_no_request_is_made_during_the_cool_down(self) -> None:
        server, sources = Keys(), []
        for pause in (0, 59, 1, 59, 1):
            server.advance(pause)
            sources.append(server.run(server.documents.refresh(URL, cool_down=60)).source)
        assert sources == [Source.FETCHED, Source.CACHED, Source.FETCHED, Source.CACHED, Source.FETCHED]
