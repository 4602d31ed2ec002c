package httpapi

import (
	"context"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/api"
	"github.com/groupcast/groupcast/openapi/ginserver"
	"github.com/groupcast/groupcast/server/groups"
)

func (h handlers) ListGroups(ctx context.Context, r ginserver.ListGroupsRequestObject) (ginserver.ListGroupsResponseObject, error) {
	ctx, p := caller(ctx)
	filter := groups.Filter{Name: value(r.Params.GroupName), PremisesID: value(r.Params.PremisesID)}
	list, next, err := h.Groups.List(ctx, p, filter, page(r.Params.PageSize, r.Params.PageToken))
	if err != nil {
		return nil, err
	}
	return ginserver.ListGroups200JSONResponse{Groups: convert(list, group), NextPageToken: orNil(next)}, nil
}

func (h handlers) GetGroup(ctx context.Context, r ginserver.GetGroupRequestObject) (ginserver.GetGroupResponseObject, error) {
	ctx, p := caller(ctx)
	g, err := h.Groups.Get(ctx, p, r.GroupID)
	if err != nil {
		return nil, err
	}
	return ginserver.GetGroup200JSONResponse(group(g)), nil
}

func group(g models.GroupState) api.Group {
	return api.Group{
		GroupID:    g.ID,
		PremisesID: g.PremisesID,
		GroupName:  g.Name,
		GroupIP:    g.IP,
		Generation: int32(g.Generation),
		Rev:        int32(g.Rev),
		State:      int32(g.State),
		Members: convert(g.Members, func(m models.Member) api.Member {
			return api.Member{Type: m.Type, ID: m.ID, Role: api.MemberRole(m.Role), Name: m.Name, RegistrationID: orNil(m.RegistrationID), Consent: orNil(m.Consent)}
		}),
	}
}
