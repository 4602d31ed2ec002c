package httpapi

import (
	"context"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/ginserver"
)

func (h handlers) DeclareRelay(context.Context, ginserver.DeclareRelayRequestObject) (ginserver.DeclareRelayResponseObject, error) {
	return nil, models.NotFound()
}

func (h handlers) GetRelayInformation(context.Context, ginserver.GetRelayInformationRequestObject) (ginserver.GetRelayInformationResponseObject, error) {
	return nil, models.NotFound()
}

func (h handlers) ReportRelayConsents(context.Context, ginserver.ReportRelayConsentsRequestObject) (ginserver.ReportRelayConsentsResponseObject, error) {
	return nil, models.NotFound()
}
