package httpapi

import (
	"net/http"

	"github.com/gin-gonic/gin"

	"github.com/groupcast/groupcast/docs/problems"
	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/server/problem"
)

// ServeProblemPages serves what the type of a problem document points to.
func (e *Edge) ServeProblemPages() { e.Open().GET(problem.TypePrefix+":code", e.problemPage) }

func (e *Edge) problemPage(c *gin.Context) {
	page, ok := problems.Page(c.Param("code"))
	if !ok {
		e.refuse(c, models.Errorf(models.CodeUnknownRoute, "There is no problem of this name."))
		return
	}
	c.Header("X-Content-Type-Options", "nosniff")
	c.Data(http.StatusOK, "text/markdown; charset=utf-8", page)
}
