package clientauth

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"time"
)

// Device is what a device says of itself when it enrols. Everything is optional, 64 bytes at most each.
type Device struct {
	// Name is what people call it. With AskApproval the account holder gives the name.
	Name   string
	Model  string
	Serial string
	// Type is the contract's deviceType, for AskApproval. A ticket is for one type already.
	Type string
}

// Enrolment makes a device's credential: a key of its own, which the server is told to belong to a device of an account. The key
// is on the disk before the server is asked, and a second try finds it again, so that a power cut costs a ticket or a code at
// most. A credential that is complete is never replaced.
type Enrolment struct {
	// Path is the credential file to write.
	Path    string
	Server  string
	Device  Device
	Options Options
}

// UseTicket enrols with a single-use ticket that the account holder made (RFC 7591).
func (n Enrolment) UseTicket(ctx context.Context, ticket string) (*Client, error) {
	f, k, e, err := n.prepare()
	if err != nil {
		return nil, err
	}
	var a struct {
		ClientID string `json:"client_id"`
		DeviceID string `json:"deviceId"`
		RelayID  string `json:"relayId"` // a relay has no other
	}
	err = e.post(ctx, "enrol the device", "/oauth/register", k, func(r *http.Request, _ time.Time) error {
		about := map[string]any{
			"ticket":                     ticket,
			"token_endpoint_auth_method": "private_key_jwt",
			"jwks":                       map[string]any{"keys": []json.RawMessage{k.jwk}},
		}
		for name, value := range map[string]string{"client_name": n.Device.Name, "model": n.Device.Model, "serial": n.Device.Serial} {
			if value != "" {
				about[name] = value
			}
		}
		return setJSON(r, about)
	}, &a)
	if err != nil {
		return nil, err
	}
	if a.ClientID == "" {
		return nil, errors.New("enrol the device: the answer has no client_id: check that it is a groupcast server of the same release")
	}
	f.ClientID, f.DeviceID, f.RelayID, f.DPoP = a.ClientID, a.DeviceID, a.RelayID, true
	return finish(n.Path, f, k, e)
}

// prepare finds the key of an enrolment that didn't end, or makes one and writes it.
func (n Enrolment) prepare() (*file, *key, *endpoint, error) {
	path := n.Path
	e, err := newEndpoint(n.Server, n.Options)
	if err != nil {
		return nil, nil, nil, err
	}
	b, err := readSecret(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, nil, nil, err
	case !isFile(b):
		return nil, nil, nil, fmt.Errorf("%s holds something already: move it away, or enrol into another file", path)
	default:
		f, err := parseFile(path, b)
		if err != nil {
			return nil, nil, nil, err
		}
		if f.ClientID != "" {
			return nil, nil, nil, fmt.Errorf("%s holds the credential of %q already: move it away to enrol anew", path, f.ClientID)
		}
		k, err := parseKey(f.PrivateKey)
		if err != nil {
			return nil, nil, nil, fmt.Errorf("credential file %s: %w", path, err)
		}
		f.Server = e.issuer
		return f, k, e, nil
	}
	k, err := newKey()
	if err != nil {
		return nil, nil, nil, err
	}
	private, err := k.marshal()
	if err != nil {
		return nil, nil, nil, err
	}
	f := &file{Version: fileVersion, Server: e.issuer, PrivateKey: private}
	if err := f.write(path); err != nil {
		return nil, nil, nil, err
	}
	return f, k, e, nil
}

func finish(path string, f *file, k *key, e *endpoint) (*Client, error) {
	if err := f.write(path); err != nil {
		return nil, err
	}
	return newClient(path, e, &credential{file: *f, key: k}), nil
}
