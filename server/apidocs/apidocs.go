// Package apidocs serves the contract, and a page at /docs that shows it and lets one try it out (Swagger UI, vendored).
//
// Everything comes out of the program: the page calls no other host, and its Content-Security-Policy sees to it. The package
// knows no operation and asks nobody who they are: the contract is public.
package apidocs

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/gin-gonic/gin"

	"github.com/groupcast/groupcast/openapi"
)

// The vendored files come from .ci/vendor-apidocs.
var (
	//go:embed page.html
	page []byte
	//go:embed start.js
	start []byte
	//go:embed assets/swagger-ui-bundle.js.gz
	bundle []byte
	//go:embed assets/swagger-ui.css.gz
	style []byte
	//go:embed assets/favicon-32x32.png
	icon []byte
)

// policy lets the page load and ask this service only. Swagger UI draws with images that are part of its style sheet.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// file is one thing that is served under a path of its own.
type file struct {
	path, media string
	content     []byte
	// gzipped says that content is compressed, and is decompressed for clients that can't take it so.
	gzipped bool
}

// Register adds the page, its parts and /openapi.yaml to the router, outside of whatever guards the operations.
func Register(router gin.IRouter) {
	for _, f := range []file{
		{path: "/docs", media: "text/html; charset=utf-8", content: page},
		{path: "/docs/start.js", media: "text/javascript; charset=utf-8", content: start},
		{path: "/docs/swagger-ui.js", media: "text/javascript; charset=utf-8", content: bundle, gzipped: true},
		{path: "/docs/swagger-ui.css", media: "text/css; charset=utf-8", content: style, gzipped: true},
		{path: "/docs/favicon.png", media: "image/png", content: icon},
		{path: "/openapi.yaml", media: "application/yaml", content: openapi.Public},
	} {
		handler := f.handler()
		router.GET(f.path, handler)
		router.HEAD(f.path, handler)
	}
	// Relative, so that it holds behind a proxy that serves groupcast under a prefix.
	slash := func(c *gin.Context) { c.Redirect(http.StatusPermanentRedirect, "../docs") }
	router.GET("/docs/", slash)
	router.HEAD("/docs/", slash)
}

func (f file) handler() gin.HandlerFunc {
	sum := sha256.Sum256(f.content)
	tag := hex.EncodeToString(sum[:8])
	return func(c *gin.Context) {
		h := c.Writer.Header()
		h.Set("Content-Type", f.media)
		h.Set("Content-Security-Policy", policy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		// The path of a file stays when the program is updated, so a browser asks each time; mostly the answer is 304.
		h.Set("Cache-Control", "no-cache")
		etag, content := `"`+tag+`"`, f.content
		if f.gzipped {
			h.Set("Vary", "Accept-Encoding")
			if acceptsGzip(c.Request) {
				etag = `"` + tag + `-gzip"`
				h.Set("Content-Encoding", "gzip")
			} else {
				content = nil
			}
		}
		h.Set("ETag", etag)
		if strings.TrimPrefix(c.GetHeader("If-None-Match"), "W/") == etag { // a proxy may have weakened it
			h.Del("Content-Encoding")
			c.Status(http.StatusNotModified)
			return
		}
		if content == nil {
			f.unpack(c)
			return
		}
		h.Set("Content-Length", strconv.Itoa(len(content)))
		c.Status(http.StatusOK)
		_, _ = c.Writer.Write(content) // a client that is gone can't be told
	}
}

func (f file) unpack(c *gin.Context) {
	c.Status(http.StatusOK)
	r, err := gzip.NewReader(bytes.NewReader(f.content))
	if err != nil {
		panic("apidocs: " + f.path + " is no gzip file: " + err.Error()) // part of the program, tested
	}
	_, _ = io.Copy(c.Writer, r) //nolint:gosec // the length is that of a file of ours
}

// acceptsGzip reads Accept-Encoding (RFC 9110 §12.5.3).
func acceptsGzip(r *http.Request) bool {
	for item := range strings.SplitSeq(strings.Join(r.Header.Values("Accept-Encoding"), ","), ",") {
		coding, weight, _ := strings.Cut(item, ";")
		if !strings.EqualFold(strings.TrimSpace(coding), "gzip") {
			continue
		}
		_, q, weighted := strings.Cut(weight, "=")
		value, err := strconv.ParseFloat(strings.TrimSpace(q), 64)
		return !weighted || err == nil && value > 0
	}
	return false
}
