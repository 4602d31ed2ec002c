package main

import (
	"fmt"
	"net/netip"

	"github.com/oapi-codegen/nullable"
	"github.com/spf13/cobra"

	"github.com/groupcast/groupcast/models"
	"github.com/groupcast/groupcast/openapi/api"
)

// member is who registers in which group: the flags that register, camera and receive have in common.
type member struct {
	id, premises, group, instance  string
	kind                           models.MemberType
	groupIP, private, public, ipv6 netip.Addr
	port                           uint16
	ttl                            int32
	deviceType, model, name        string
}

func (m *member) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&m.id, "id", "", "the member's `ID`: the device id, or the service account id")
	f.StringVar(&m.group, "group", "", "`NAME` of the group")
	f.TextVar(&m.groupIP, "group-ip", netip.Addr{}, "the group's `ADDRESS`; a service that leaves it out has it looked up")
	f.StringVar(&m.premises, "premises", "", "`ID` of the premises, if several have a group of that name")
	f.StringVar(&m.instance, "instance", "", "`NAME` of this worker of a service")
	f.TextVar(&m.private, "private-ip", netip.Addr{}, "the member's IPv4 `ADDRESS` in the home's LAN")
	f.TextVar(&m.public, "public-ip", netip.Addr{}, "the member's public IPv4 `ADDRESS` (a device's default: where its request comes from)")
	f.TextVar(&m.ipv6, "ipv6", netip.Addr{}, "the member's IPv6 `ADDRESS`")
	f.Int32Var(&m.ttl, "ttl", 3600, "`SECONDS` the lease lives without renewal")
	f.StringVar(&m.deviceType, "device-type", "", "camera, receiver, phone, tablet, laptop or other")
	f.StringVar(&m.model, "model", "", "the device's model, for people")
	f.StringVar(&m.name, "name", "", "what people call this member")
	needs(cmd, "id", "group")
}

func (m *member) kindFlag(cmd *cobra.Command) {
	cmd.Flags().StringVar((*string)(&m.kind), "type", string(models.MemberDevice), "Device or Service")
}

// request gives the body for the contract. A bad id is found here; everything else is judged by the service.
func (m *member) request(destination bool) (api.RegistrationRequest, error) {
	id, err := models.ParseID(m.id)
	if err != nil {
		return api.RegistrationRequest{}, fmt.Errorf("--id: %w", err)
	}
	return api.RegistrationRequest{
		Type:        m.kind,
		ID:          id,
		Destination: destination,
		Instance:    given(m.instance),
		PremisesID:  given(models.PremisesID(m.premises)),
		PrivateIPv4: address(m.private),
		PublicIPv4:  address(m.public),
		IPv6:        address(m.ipv6),
		Port:        port(m.port),
		GroupName:   m.group,
		GroupIP:     address(m.groupIP),
		TTLs:        nullable.NewNullableWithValue(m.ttl),
		DeviceType:  given(models.DeviceType(m.deviceType)),
		Model:       given(m.model),
		Name:        given(m.name),
	}, nil
}

func given[T ~string](text T) *T {
	if text == "" {
		return nil
	}
	return &text
}

func address(a netip.Addr) nullable.Nullable[netip.Addr] {
	if !a.IsValid() {
		return nullable.NewNullNullable[netip.Addr]()
	}
	return nullable.NewNullableWithValue(a.Unmap())
}

func port(p uint16) nullable.Nullable[int32] {
	if p == 0 {
		return nil
	}
	return nullable.NewNullableWithValue(int32(p))
}
