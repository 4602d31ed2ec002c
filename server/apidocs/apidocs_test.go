package apidocs_test

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/gin-gonic/gin"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/openapi"
	"github.com/groupcast/groupcast/server/apidocs"
)

func serve(t *testing.T) *httptest.Server {
	t.Helper()
	gin.SetMode(gin.TestMode)
	engine := gin.New()
	apidocs.Register(engine)
	s := httptest.NewServer(engine)
	t.Cleanup(s.Close)
	return s
}

type answer struct {
	status int
	header http.Header
	body   []byte
}

// ask fetches a path as it is on the wire, without following a redirect or unpacking.
func ask(t *testing.T, s *httptest.Server, method, path string, header ...string) answer {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, s.URL+path, nil)
	require.NoError(t, err)
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	r, err := (&http.Transport{DisableCompression: true}).RoundTrip(req)
	require.NoError(t, err)
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	require.NoError(t, err)
	return answer{r.StatusCode, r.Header, body}
}

var paths = []string{"/docs", "/docs/start.js", "/docs/swagger-ui.js", "/docs/swagger-ui.css", "/docs/favicon.png", "/openapi.yaml"}

func TestEveryAnswerForbidsOtherHosts(t *testing.T) {
	s := serve(t)
	for _, path := range append(paths, "/docs/") {
		r := ask(t, s, http.MethodGet, path)
		if path == "/docs/" {
			assert.Equal(t, http.StatusPermanentRedirect, r.status)
			assert.Equal(t, "/docs", r.header.Get("Location"))
			continue
		}
		assert.Equal(t, http.StatusOK, r.status, path)
		assert.Equal(t, "nosniff", r.header.Get("X-Content-Type-Options"), path)
		policy := r.header.Get("Content-Security-Policy")
		assert.Contains(t, policy, "default-src 'none'", path)
		for directive := range strings.SplitSeq(policy, ";") {
			for _, source := range strings.Fields(directive)[1:] {
				if source == "data:" {
					assert.Contains(t, directive, "img-src", path)
					continue
				}
				assert.Contains(t, []string{"'none'", "'self'"}, source, path)
			}
		}
	}
}

// What the page loads, and what that loads, lies on this service. (The bundle is full of addresses, of namespaces and
// documents; that it calls none is a matter of the policy above, and of a test with a browser.)
func TestThePageNamesNoOtherHost(t *testing.T) {
	s := serve(t)
	page := ask(t, s, http.MethodGet, "/docs").body
	links := regexp.MustCompile(`(?:src|href)="([^"]*)"`).FindAllSubmatch(page, -1)
	require.Len(t, links, 5)
	for _, link := range links {
		assert.NotContains(t, string(link[1]), ":")
		r := ask(t, s, http.MethodGet, "/"+string(link[1]))
		assert.Equal(t, http.StatusOK, r.status, "the page refers to %s", link[1])
	}
	assert.NotContains(t, string(page), "//")
	assert.NotContains(t, string(page), "<style")

	script := ask(t, s, http.MethodGet, "/docs/start.js").body
	code := regexp.MustCompile(`(?m)^\s*//.*$`).ReplaceAllString(string(script), "")
	assert.NotContains(t, code, "//")
	assert.Contains(t, code, `url: "openapi.yaml"`)
	assert.Contains(t, code, "validatorUrl: null")

	css := ask(t, s, http.MethodGet, "/docs/swagger-ui.css").body
	assert.NotContains(t, string(css), "@import")
	for _, url := range regexp.MustCompile(`url\(["']?([^)]{0,10})`).FindAllSubmatch(css, -1) {
		assert.True(t, bytes.HasPrefix(url[1], []byte("data:")), "the style sheet loads %s…", url[1])
	}
}

func TestTheContractIsServedAsItIs(t *testing.T) {
	r := ask(t, serve(t), http.MethodGet, "/openapi.yaml")
	assert.Equal(t, "application/yaml", r.header.Get("Content-Type"))
	assert.Equal(t, string(openapi.Public), string(r.body))
}

// The vendored files are what .ci/vendor-apidocs took out of the package, packed or not.
func TestPackedAndUnpackedAreTheSame(t *testing.T) {
	s := serve(t)
	sums, err := os.ReadFile("assets/SHA256SUMS")
	require.NoError(t, err)
	for path, name := range map[string]string{"/docs/swagger-ui.js": "swagger-ui-bundle.js", "/docs/swagger-ui.css": "swagger-ui.css"} {
		for _, accept := range []string{"", "identity", "br", "gzip;q=0", "br, gzip;q=0.0"} {
			r := ask(t, s, http.MethodGet, path, "Accept-Encoding", accept)
			sum := sha256.Sum256(r.body)
			assert.Contains(t, string(sums), hex.EncodeToString(sum[:])+"  "+name, "%s for %q", path, accept)
			assert.Empty(t, r.header.Get("Content-Encoding"))
			assert.Equal(t, "Accept-Encoding", r.header.Get("Vary"))
		}
		for _, accept := range []string{"gzip", "br, GZIP ; q=0.5"} {
			r := ask(t, s, http.MethodGet, path, "Accept-Encoding", accept)
			require.Equal(t, "gzip", r.header.Get("Content-Encoding"), "%s for %q", path, accept)
			unzipped, err := gzip.NewReader(bytes.NewReader(r.body))
			require.NoError(t, err)
			content, err := io.ReadAll(unzipped)
			require.NoError(t, err)
			sum := sha256.Sum256(content)
			assert.Contains(t, string(sums), hex.EncodeToString(sum[:])+"  "+name)
		}
	}
}

func TestABrowserAsksAgainAndGetsNothingTwice(t *testing.T) {
	s := serve(t)
	for _, path := range paths {
		for _, accept := range []string{"gzip", "identity"} {
			r := ask(t, s, http.MethodGet, path, "Accept-Encoding", accept)
			assert.Equal(t, "no-cache", r.header.Get("Cache-Control"))
			again := ask(t, s, http.MethodGet, path, "Accept-Encoding", accept, "If-None-Match", r.header.Get("ETag"))
			assert.Equal(t, http.StatusNotModified, again.status, path)
			assert.Empty(t, again.body)
			head := ask(t, s, http.MethodHead, path, "Accept-Encoding", accept)
			assert.Equal(t, http.StatusOK, head.status, path)
			assert.Equal(t, r.header.Get("ETag"), head.header.Get("ETag"), path)
			assert.Empty(t, head.body)
		}
	}
}
