package clientauth

import "context"

// MQTT gives the user name and the password for one connection of a device to the service over MQTT (docs/mqtt.md). Each call gets a new access
// token if it can: the connection ends with the token, and the answer brings the nonce for the proof of possession that is the user name.
func (c *Client) MQTT(ctx context.Context) (username, password string, err error) {
	return c.connection(ctx, "MQTT", "/mqtt", "device")
}

// NATS gives the user name and the password for one connection of a service to the queue of events (docs/queue.md), like MQTT. It is for
// nats.UserInfoHandler, which asks anew at each reconnect.
func (c *Client) NATS(ctx context.Context) (username, password string, err error) {
	return c.connection(ctx, "NATS", "/nats", "service")
}

// connection gives user name and password; a token that is bound to no key needs no user name but anybody.
func (c *Client) connection(ctx context.Context, method, path, anybody string) (username, password string, err error) {
	t, err := c.current(ctx)
	if err != nil {
		return "", "", err
	}
	if t.renewable() {
		c.forget(t.value)
		if t, err = c.current(ctx); err != nil {
			return "", "", err
		}
	}
	if t.key == nil {
		return anybody, t.value, nil
	}
	known := c.endpoint.known()
	proof, err := t.key.proof(method, c.endpoint.issuer+path, t.value, known.nonce, c.endpoint.now(known))
	return proof, t.value, err
}
