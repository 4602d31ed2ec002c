package httpapi

import (
	"strconv"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/problem"
	"github.com/groupcast/groupcast/server/ratelimit"
)

// Limits say how many requests may come; a nil one limits nothing.
type Limits struct {
	// Source counts everybody behind one network, before anything is known of the caller.
	Source *ratelimit.Limiter
	// Principal counts one authenticated caller.
	Principal *ratelimit.Limiter
}

// unlimited operations are those that wait, and those that watch the service.
var unlimited = map[string]bool{"getGroupInformation": true, "getHealth": true, "getReadiness": true}

// take counts a request and refuses it if it is one too many. The headers tell of the limit that is closest.
func (e *Edge) take(c *gin.Context, op *operation, l *ratelimit.Limiter, k ratelimit.Key) error {
	if l == nil || unlimited[op.id] {
		return nil
	}
	d := l.Take(k)
	info, h := callOf(c), c.Writer.Header()
	if !info.limited || d.Remaining < info.remaining {
		info.limited, info.remaining = true, d.Remaining
		h.Set("RateLimit-Limit", strconv.Itoa(d.Limit))
		h.Set("RateLimit-Remaining", strconv.Itoa(d.Remaining))
		h.Set("RateLimit-Reset", strconv.Itoa(seconds(d.Reset)))
	}
	if d.Allowed {
		return nil
	}
	wait := seconds(d.RetryAfter)
	return models.Errorf(models.CodeRateLimited, "Too many requests came from there. Wait %d s, then send fewer.", wait).With(problem.RetryAfter, wait)
}

func seconds(d time.Duration) int { return int((d + time.Second - 1) / time.Second) }

// principalKey is who an authenticated caller is for counting.
func principalKey(p models.Principal) ratelimit.Key {
	switch p.Kind {
	case models.KindService:
		return ratelimit.ByPrincipal(p.Kind, string(p.Service.ID))
	case models.KindUser:
		return ratelimit.ByPrincipal(p.Kind, p.UserID)
	default:
		return ratelimit.ByPrincipal(p.Kind, p.Device.ID.String())
	}
}
