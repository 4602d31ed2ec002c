// A foreign OAuth client, unmodified, against a running groupcastd. The test that starts it plays the operator: a line "ASK name value" on
// standard output is answered by a line on standard input.
import * as oauth from 'oauth4webapi'
import * as jose from 'jose'
import assert from 'node:assert/strict'
import readline from 'node:readline'

const issuer = process.argv[2]
const lines = readline.createInterface({ input: process.stdin })[Symbol.asyncIterator]()
const ask = async (name, value) => {
  console.log(`ASK ${name} ${value}`)
  return (await lines.next()).value
}
const plainHTTP = { [oauth.allowInsecureRequests]: true } // the service is on loopback

// Discovery (RFC 8414) tells everything else.
const server = await oauth.processDiscoveryResponse(
  new URL(issuer),
  await oauth.discoveryRequest(new URL(issuer), { algorithm: 'oauth2', ...plainHTTP }),
)
assert.equal(server.issuer, issuer)
const keys = jose.createRemoteJWKSet(new URL(server.jwks_uri))
const verify = (token) => jose.jwtVerify(token, keys, { issuer, audience: 'groupcast', typ: 'at+jwt' })

// A server that was just started asks for a nonce in the first proof.
const withNonce = async (handle, request) => {
  try {
    return await request()
  } catch (error) {
    if (!oauth.isDPoPNonceError(error)) throw error
    return request()
  }
}

// Services: client_credentials with private_key_jwt, and a call that their token is good for.
for (const algorithm of ['ES256', 'Ed25519']) {
  const pair = await oauth.generateKeyPair(algorithm, { extractable: true })
  const jwk = await jose.exportJWK(pair.publicKey)
  const id = await ask('service', JSON.stringify(jwk))
  const client = { client_id: id }
  const answer = await oauth.processClientCredentialsResponse(
    server,
    client,
    await oauth.clientCredentialsGrantRequest(server, client, oauth.PrivateKeyJwt(pair.privateKey), new URLSearchParams(), plainHTTP),
  )
  assert.equal(answer.token_type, 'bearer')
  const { payload } = await verify(answer.access_token)
  assert.equal(payload.gc_kind, 'service')
  const response = await oauth.protectedResourceRequest(
    answer.access_token, 'GET', new URL('/v1/registrations', issuer), undefined, undefined, plainHTTP)
  assert.equal(response.status, 200)
  console.log(`ok client_credentials with private_key_jwt, ${algorithm}`)
}

// Devices: the device grant with DPoP, a bound call, and the refresh token.
for (const algorithm of ['ES256', 'Ed25519']) {
  const client = { client_id: 'gc-device' }
  const DPoP = oauth.DPoP(client, await oauth.generateKeyPair(algorithm))
  const begun = await oauth.processDeviceAuthorizationResponse(
    server,
    client,
    await oauth.deviceAuthorizationRequest(server, client, oauth.None(), new URLSearchParams({ device_type: 'camera', model: 'M1' }), plainHTTP),
  )
  assert.equal(await ask('approve', begun.user_code), 'done')
  const token = await withNonce(DPoP, async () =>
    oauth.processDeviceCodeResponse(
      server, client, await oauth.deviceCodeGrantRequest(server, client, oauth.None(), begun.device_code, { DPoP, ...plainHTTP })))
  assert.equal(token.token_type, 'dpop')
  const { payload } = await verify(token.access_token)
  assert.equal(payload.gc_kind, 'device')
  assert.equal(payload.cnf.jkt, await DPoP.calculateThumbprint())
  const call = () => oauth.protectedResourceRequest(token.access_token, 'GET', new URL('/v1/groups', issuer), undefined, undefined, { DPoP, ...plainHTTP })
  const response = await withNonce(DPoP, call)
  assert.equal(response.status, 200)
  const renewed = await withNonce(DPoP, async () =>
    oauth.processRefreshTokenResponse(
      server, client, await oauth.refreshTokenGrantRequest(server, client, oauth.None(), token.refresh_token, { DPoP, ...plainHTTP })))
  assert.equal(renewed.token_type, 'dpop')

  // The token alone is of no use to a thief.
  const stolen = await fetch(new URL('/v1/groups', issuer), { headers: { authorization: `Bearer ${token.access_token}` } })
  assert.equal(stolen.status, 401)
  assert.match(stolen.headers.get('www-authenticate'), /^DPoP /)
  console.log(`ok device grant with DPoP, ${algorithm}`)
}
process.exit(0)
