"""The HTTP service of `fusioner-rt serve`, and its contract behind other servers. It imports the rest of the runtime, of which the
command alone imports it.

settings     what a service is started with
app          `create_app`: routes to an ASGI application
request      the fields of a request, typed and checked once
body         uploads, read with a bound, to fields and a picture
pictures     a request's picture to pixels
answer       a result in the form that the client accepts
errors       the service's own kinds of errors, each with its HTTP status
problem      any error as a problem document of RFC 9457
models       bundles by name, loaded anew without a gap
batching     the queue, micro-batches, deadlines
handles      encoded pictures that clients come back to
v2           the Open Inference Protocol
triton       the same as models of NVIDIA Triton Inference Server, which runs them instead of this service
triton_steps what comes before and after an engine that Triton runs by itself
metrics      Prometheus
log          one JSON line a request
openapi      the description of the service
service      what every door leads to: decoding, batches, handles
listening    one process on a port
workers      several processes on one port
page         the page at /, files that are served as they are
"""
