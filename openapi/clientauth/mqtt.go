package clientauth

import "context"

// MQTT gives the user name and the password for one connection to the service over MQTT (docs/mqtt.md). Each call gets a new access token if
// it can: the connection ends with the token, and the answer brings the nonce for the proof of possession that is the user name.
func (c *Client) MQTT(ctx context.Context) (username, password string, err error) {
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
		return "device", t.value, nil
	}
	known := c.endpoint.known()
	proof, err := t.key.proof("MQTT", c.endpoint.issuer+"/mqtt", t.value, known.nonce, c.endpoint.now(known))
	return proof, t.value, err
}
