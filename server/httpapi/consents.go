package httpapi

import (
	"context"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/ginserver"
)

func (h handlers) ReportConsents(context.Context, ginserver.ReportConsentsRequestObject) (ginserver.ReportConsentsResponseObject, error) {
	return nil, models.Errorf(models.CodeUnavailable, "This version doesn't take reports yet.")
}
