"""A service in thirty lines: POST a picture, get it back with its masks, or the masks as COCO.

  python examples/small_service.py &
  curl --data-binary @docs/pictures/astronaut.jpg "http://127.0.0.1:8000/?words=face,hair" -o small_service.jpg
  curl --data-binary @docs/pictures/astronaut.jpg -H "Accept: application/json" "http://127.0.0.1:8000/?words=face"

`fusioner-rt serve` also has limits, batches, metrics and a page (docs/serve.md); this is where to start one of your own.
"""

import argparse
import io

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

import fusioner_rt


async def segment(request: Request) -> Response:
    picture, words = await request.body(), request.query_params.get("words", "person, cat")
    result = await run_in_threadpool(request.app.state.session.segment, picture, words)
    if request.headers.get("accept") == "application/json":
        return JSONResponse(result.to_coco())
    result.overlay().save(jpeg := io.BytesIO(), "jpeg")
    return Response(jpeg.getvalue(), media_type="image/jpeg")


async def failed(_: Request, error: Exception) -> Response:
    """One line: what was found, and what to do. Bad pictures and words are the client's fault."""
    at_fault = isinstance(error, fusioner_rt.FusionerError) and error.is_input
    return JSONResponse({"error": str(error)}, status_code=400 if at_fault else 500)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8000)
    given = parser.parse_args()
    app = Starlette(
        routes=[Route("/", segment, methods=["POST"])], exception_handlers={fusioner_rt.FusionerError: failed}
    )
    with fusioner_rt.Session() as app.state.session:  # threads may share it
        uvicorn.run(app, port=given.port)


if __name__ == "__main__":
    try:
        main()
    except fusioner_rt.FusionerError as error:  # one line: what was found, and what to do
        raise SystemExit(str(error)) from None
