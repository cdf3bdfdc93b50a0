// echo.js PORT: an HTTP server on ::, for IPv4 too, that answers with the body it got.
require("http")
	.createServer((request, response) => request.pipe(response))
	.listen(process.argv[2], "::");
