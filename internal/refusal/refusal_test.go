package refusal_test

import (
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/groupcast/groupcast/internal/refusal"
)

type answer struct {
	status int
	body   string
}

func (a answer) StatusCode() int { return a.status }
func (a answer) GetBody() []byte { return []byte(a.body) }

func TestValue(t *testing.T) {
	document := "document"
	got, err := refusal.Value(&document, answer{status: 200}, nil)
	require.NoError(t, err)
	assert.Same(t, &document, got)
	_, err = refusal.Value[string](nil, answer{status: 200}, nil)
	require.ErrorContains(t, err, "without the document")
	require.NoError(t, refusal.Check(answer{status: 304}, nil))
	require.NoError(t, refusal.Check(answer{status: 204}, nil))
}

func TestError(t *testing.T) {
	tests := []struct {
		name   string
		answer answer
		header http.Header
		want   string
		final  bool
		after  time.Duration
	}{
		{
			"a problem",
			answer{409, `{"type":"/problems/no-gateway","title":"No gateway","status":409,"detail":"Start the agent.","instance":"x1"}`},
			nil,
			"No gateway (409): Start the agent.\n  type: /problems/no-gateway\n  request: x1", true, 0,
		},
		{
			"with fields",
			answer{400, `{"type":"/problems/bad-request","title":"Bad","status":400,"detail":"Two.","errors":[{"pointer":"/id","detail":"Give one."},{"detail":"More."}]}`},
			nil,
			"Bad (400): Two.\n  /id: Give one.\n  More.\n  type: /problems/bad-request", true, 0,
		},
		{
			"to be asked again",
			answer{503, `{"type":"/problems/unavailable","title":"Away","status":503}`},
			http.Header{"Retry-After": {"7"}},
			"Away (503)\n  type: /problems/unavailable", false, 7 * time.Second,
		},
		{"too many", answer{429, `{"type":"/problems/overloaded","title":"Many","status":429}`}, nil, "Many (429)\n  type: /problems/overloaded", false, 0},
		{
			"of a proxy",
			answer{502, `<html>`},
			nil,
			"Bad Gateway (502): The answer is not a problem document: something between here and the service may have given it. Check the URL.\n  type: about:blank", false, 0,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := refusal.Check(tt.answer, tt.header)
			var refused *refusal.Error
			require.ErrorAs(t, err, &refused)
			assert.Equal(t, tt.want, err.Error())
			assert.Equal(t, tt.final, refused.Final())
			assert.Equal(t, tt.after, refused.RetryAfter)
		})
	}
}
