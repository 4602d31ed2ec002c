package clientauth

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// Service is what an operator gave a service partner.
type Service struct {
	Server   string
	ClientID string
	// Secret is the client secret. Without one a key is made, whose public half (Client.PublicKey) the operator has to register.
	Secret string
	// Scope is asked for with each token; empty means all that the client may have.
	Scope string
	// DPoP binds the service's tokens to its key; it needs a key, so no Secret.
	DPoP bool
}

// CreateService writes a service's credential file. It refuses to replace a file.
func CreateService(path string, s Service, o Options) (*Client, error) {
	e, err := newEndpoint(s.Server, o)
	if err != nil {
		return nil, err
	}
	if s.ClientID == "" {
		return nil, errors.New("a service needs the client id that the operator gave it")
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s exists already: move it away, or choose another file", path)
	}
	f := &file{Version: fileVersion, Server: e.issuer, ClientID: s.ClientID, ClientSecret: s.Secret, Scope: s.Scope, DPoP: s.DPoP}
	var k *key
	if s.Secret == "" {
		if k, err = newKey(); err != nil {
			return nil, err
		}
		if f.PrivateKey, err = k.marshal(); err != nil {
			return nil, err
		}
	}
	if err := f.check(); err != nil {
		return nil, fmt.Errorf("credential file %s: %w", path, err)
	}
	return finish(path, f, k, e)
}
