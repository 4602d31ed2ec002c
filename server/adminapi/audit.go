package adminapi

import (
	"context"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/adminapi"
	"github.com/groupcast/groupcast/openapi/adminserver"
	"github.com/groupcast/groupcast/server/audit"
	"github.com/groupcast/groupcast/server/users"
)

// CreateInvitation invites somebody to sign up.
func (h *Handlers) CreateInvitation(ctx context.Context, r adminserver.CreateInvitationRequestObject) (adminserver.CreateInvitationResponseObject, error) {
	invitation, err := h.users.Invite(ctx, value(r.Body.AccountID))
	if err != nil {
		return nil, err
	}
	return adminserver.CreateInvitation200JSONResponse{Invitation: invitation, ExpiresIn: int32(users.InvitationLife / time.Second)}, nil
}

// ListAudit lists the audit log.
func (h *Handlers) ListAudit(ctx context.Context, r adminserver.ListAuditRequestObject) (adminserver.ListAuditResponseObject, error) {
	filter := models.AuditFilter{
		AccountID: value(r.Params.AccountID), Actor: value(r.Params.Actor), Action: value(r.Params.Action), Since: value(r.Params.Since), Until: value(r.Params.Until),
	}
	rows, next, err := audit.List(ctx, h.store, filter, page(r.Params.PageSize, r.Params.PageToken))
	if err != nil {
		return nil, err
	}
	return adminserver.ListAudit200JSONResponse{Rows: convert(rows, auditRow), NextPageToken: orNil(next)}, nil
}

func auditRow(a models.AuditRow) adminapi.AuditRow {
	row := adminapi.AuditRow{
		ID: string(a.ID), At: a.At.UTC().Format("2006-01-02T15:04:05.000Z"), Actor: a.Actor, AccountID: orNil(string(a.AccountID)), Action: a.Action,
		Object: orNil(a.Object), Result: a.Result, Reason: orNil(a.Reason), RequestID: orNil(a.RequestID),
	}
	if a.Source.IsValid() {
		row.Source = orNil(a.Source.String())
	}
	if a.Count > 1 {
		row.Count = orNil(int32(min(a.Count, math.MaxInt32)))
	}
	if a.Seq > 0 {
		row.Seq = orNil(strconv.FormatInt(a.Seq, 10))
	}
	return row
}

func orNil[T comparable](v T) *T {
	var zero T
	if v == zero {
		return nil
	}
	return &v
}

func place(h models.AuditHead) string { return strconv.FormatInt(h.Seq, 10) + "." + h.Hash }

// VerifyAudit verifies the hash chain of the audit log.
func (h *Handlers) VerifyAudit(ctx context.Context, r adminserver.VerifyAuditRequestObject) (adminserver.VerifyAuditResponseObject, error) {
	var anchor models.AuditHead
	if r.Params.Anchor != nil {
		seq, hash, _ := strings.Cut(*r.Params.Anchor, ".")
		n, err := strconv.ParseInt(seq, 10, 64)
		if err != nil {
			return nil, models.Errorf(models.CodeBadRequest, "The anchor is not a head that an earlier verification gave.")
		}
		anchor = models.AuditHead{Seq: n, Hash: hash}
	}
	report, err := audit.Verify(ctx, h.store, anchor)
	if err != nil {
		return nil, err
	}
	answer := adminserver.VerifyAudit200JSONResponse{
		Head: place(report.Head), Base: place(report.Base), Unsealed: int32(min(report.Unsealed, 1<<31-1)), Waiting: int32(report.Waiting / time.Second),
	}
	if b := report.Break; b != nil {
		answer.Broken, answer.What, answer.Row = true, &b.What, orNil(string(b.ID))
	}
	return answer, nil
}
