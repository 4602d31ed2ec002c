// Somebody with a real browser at the pages of a running service, and the person who attacks them. The Go test beside it starts the service, is the
// operator and the device, and answers what this asks: a line "ASK name value" gets one line back.
//
//   node ui.mjs URL        CHROMIUM names the browser; UI_SCREENSHOTS a directory for pictures
import assert from 'node:assert/strict'
import http from 'node:http'
import { createInterface } from 'node:readline'
import { join } from 'node:path'
import { chromium } from 'playwright-core'

const origin = new URL(process.argv[2]).origin
const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]()
async function ask(name, value = '') {
  console.log(`ASK ${name} ${value}`)
  return (await lines.next()).value
}
const passed = (what) => console.log(`ok ${what}`)

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM || '/usr/bin/chromium',
  headless: true,
  args: [
    '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync',
  ],
})
const password = 'four words are enough'

// watch collects what no page of ours may do: complain, break its policy, or ask anybody else. That an answer isn't 2xx is what some tests want.
function watch(page) {
  const faults = []
  page.on('console', (m) => {
    if (!['error', 'warning'].includes(m.type())) return
    if (/^Failed to load resource: the server responded with a status of 40[0-9]/.test(m.text())) return
    faults.push(`console: ${m.text()}`)
  })
  page.on('pageerror', (e) => faults.push(`script: ${e.message}`))
  page.on('request', (r) => {
    if (new URL(r.url()).origin !== origin) faults.push(`request to ${r.url()}`)
  })
  page.on('requestfailed', (r) => {
    // Who leaves a page gives up what it was still loading, such as the icon. What the policy blocks is another error, and the console says so.
    if (r.failure()?.errorText !== 'net::ERR_ABORTED') faults.push(`failed: ${r.url()} ${r.failure()?.errorText}`)
  })
  return faults
}
const faults = []
async function open(options = {}) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 800 }, reducedMotion: 'reduce', ...options })
  const page = await context.newPage()
  page.setDefaultTimeout(15000)
  faults.push(watch(page))
  return page
}
let pictures = 0
async function picture(page, name) {
  if (!process.env.UI_SCREENSHOTS) return
  pictures++
  await page.screenshot({ path: join(process.env.UI_SCREENSHOTS, `${String(pictures).padStart(2, '0')}-${name}.png`), fullPage: true })
}

// accessible holds a page against what a screen reader and a keyboard need.
async function accessible(page) {
  assert.equal(await page.locator('html').getAttribute('lang'), 'en')
  assert.match(await page.title(), /\S – groupcast$/)
  assert.equal(await page.getByRole('main').count(), 1)
  assert.equal(await page.getByRole('banner').count(), 1)
  assert.equal(await page.getByRole('heading', { level: 1 }).count(), 1)
  const tree = await page.locator('body').ariaSnapshot()
  assert.doesNotMatch(tree, /- (textbox|button|combobox|checkbox|link|heading)(?! ")/, `something has no name:\n${tree}`)
  const levels = [...tree.matchAll(/\[level=(\d)\]/g)].map((m) => Number(m[1]))
  levels.reduce((before, level) => (assert.ok(level <= before + 1, `a level is left out: ${levels}`), level), 0)
  const found = await page.evaluate(() => ({
    ids: [...document.querySelectorAll('[id]')].map((e) => e.id),
    fields: [...document.querySelectorAll('input:not([type=hidden]), select')].filter((e) => e.labels.length !== 1).map((e) => e.name),
    inline: document.querySelectorAll('script, style, [style], [onclick]').length,
  }))
  assert.equal(new Set(found.ids).size, found.ids.length, 'an id stands twice')
  assert.deepEqual(found.fields, [], 'each field has one label')
  assert.equal(found.inline, 0)
}

// contrast gives the lowest contrast of text on what is behind it (WCAG 2.2, 1.4.3).
const contrast = (page) => page.evaluate(() => {
  const rgb = (s) => s.match(/[\d.]+/g).map(Number)
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0)
  const behind = (e) => {
    for (; e; e = e.parentElement) {
      const c = rgb(getComputedStyle(e).backgroundColor)
      if (c.length < 4 || c[3] > 0) return c
    }
  }
  let worst = 21
  for (const e of document.querySelectorAll('main *, header *')) {
    if (![...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()) || !e.checkVisibility()) continue
    const [a, b] = [light(rgb(getComputedStyle(e).color)), light(behind(e))].sort((x, y) => y - x)
    worst = Math.min(worst, (a + 0.05) / (b + 0.05))
  }
  return worst
})

const button = (page, name) => page.getByRole('button', { name, exact: true })
async function logIn(page, name = 'anna') {
  await page.getByLabel('User name').fill(name)
  await page.getByLabel('Your password').fill(password)
  await button(page, 'Log in').click()
}

const page = await open()

// Sign up, with the operator's invitation.
await page.goto(`${origin}/account`)
assert.equal(new URL(page.url()).pathname, '/login', 'without a session there is only the log-in')
await accessible(page)
await picture(page, 'login')
await page.getByRole('link', { name: 'Create an account' }).click()
await accessible(page)
await picture(page, 'sign-up')
await page.getByLabel('Name of the account').fill('Smith')
await page.getByLabel('User name').fill('anna')
await page.getByLabel('Password').fill(password)
await page.getByLabel('Invitation').fill('made-up')
await button(page, 'Create the account').click()
await page.getByRole('alert').filter({ hasText: 'Ask the operator for another one' }).waitFor()
await page.getByLabel('Password').fill(password)
await page.getByLabel('Invitation').fill(await ask('invitation'))
await button(page, 'Create the account').click()
await page.getByRole('heading', { level: 1, name: 'worked example' }).waitFor()
assert.equal(new URL(page.url()).pathname, '/account')
const cookie = (await page.context().cookies())[0]
assert.deepEqual(
  [cookie.name, cookie.httpOnly, cookie.secure, cookie.sameSite, cookie.path], ['__Host-groupcast', true, true, 'Lax', '/'])
await button(page, 'Log out').click()
await page.getByRole('status').filter({ hasText: 'You are logged out.' }).waitFor()
assert.equal((await page.context().cookies()).length, 0)
passed('sign-up')

// A link of a device, followed by somebody who isn't logged in.
const camera = await ask('enrol', 'camera')
await page.goto(`${origin}/device?user_code=${camera}`)
await page.getByLabel('User name').fill('anna')
await page.getByLabel('Your password').fill('not the right words')
await button(page, 'Log in').click()
await page.getByRole('alert').filter({ hasText: 'User name or password is wrong.' }).waitFor()
await accessible(page)
await picture(page, 'wrong-password')
await page.waitForTimeout(1200) // as the next try would have to
await logIn(page)
await page.getByRole('heading', { name: 'Approve a device' }).waitFor()
assert.equal(await page.getByLabel('The code that the device shows').inputValue(), camera, 'goes on where it was')
passed('log-in')

// Approve, with nothing but the keyboard.
await accessible(page)
await picture(page, 'code')
await page.goto(`${origin}/device`)
assert.equal(await page.evaluate(() => document.activeElement.id), 'user_code')
await page.keyboard.type(camera.toLowerCase().replace('-', ''))
await page.keyboard.press('Enter')
await page.getByRole('heading', { name: 'Approve this device?' }).waitFor()
await accessible(page)
await picture(page, 'approve')
for (const text of [camera, 'Camera', 'M1', '0042', 'network 127.0.0.0/24', /join the groups of your account/]) {
  await page.getByRole('main').getByText(text, typeof text === 'string' ? { exact: true } : {}).first().waitFor()
}
const focus = () => page.evaluate(() => {
  const e = document.activeElement
  return { tag: e.tagName, text: e.textContent.trim(), id: e.id, outline: getComputedStyle(e).outlineStyle }
})
const seen = []
for (let i = 0; i < 20; i++) {
  await page.keyboard.press('Tab')
  const f = await focus()
  seen.push(f.id || f.text)
  if (f.tag !== 'BODY') assert.notEqual(f.outline, 'none', `the focus on ${f.text || f.id} can't be seen`)
  if (f.id === 'name') await page.keyboard.type('porch')
  if (f.tag === 'BUTTON' && f.text === 'Approve') break
}
assert.deepEqual(seen, ['Skip to the content', 'Account', 'Approve a device', 'Log out', 'premisesId', 'name', 'Approve'])
await page.keyboard.press('Space')
await page.getByRole('status').filter({ hasText: 'Approved.' }).waitFor()
assert.equal(new URL(page.url()).search, '?done=approve', 'a reload sends nothing again')
assert.equal(await ask('enrolled'), 'enrolled')
passed('approval by keyboard')

// Refuse.
const other = await ask('enrol', 'phone')
await page.getByRole('link', { name: 'Approve a device' }).click()
await page.getByLabel('The code that the device shows').fill(other)
await button(page, 'Continue').click()
await button(page, 'Refuse').click()
await page.getByRole('status').filter({ hasText: 'Refused.' }).waitFor()
assert.match(await ask('enrolled'), /^failed .*refused/)
await page.getByLabel('The code that the device shows').fill(other)
await button(page, 'Continue').click()
await page.getByRole('alert').filter({ hasText: 'No device waits with this code.' }).waitFor()
await accessible(page)
passed('refusal')

// Who receives what, and End beside each.
await page.getByRole('link', { name: 'Account' }).click()
await accessible(page)
await picture(page, 'account')
const device = page.getByRole('region', { name: 'Devices' }).getByRole('listitem', { name: 'Device porch' })
await device.getByText('Camera · home · M1').waitFor()
const group = page.getByRole('region', { name: 'Groups: who receives what' }).getByRole('listitem', { name: 'Group groupcast1' })
await group.getByText('home · 172.168.0.233 · 3 receive').waitFor()
for (const name of ['camera1', 'svc-upload', 'svc-thumbnail', 'phone']) {
  await group.getByRole('button', { name: new RegExp(`^End ${name}, which (sends|receives) groupcast1$`) }).waitFor()
}
await page.getByRole('region', { name: 'Premises' }).getByRole('listitem', { name: 'Premises home' }).waitFor()
const text = await page.getByRole('main').innerText()
for (const address of ['96.114.14.140', '69.252.80.75', '71.230.36.162', '172.168.0.5']) assert.ok(!text.includes(address), `${address} is nobody's business`)

const information = async () => JSON.parse(await ask('information'))
assert.deepEqual((await information()).groupcast1, ['172.168.0.5', '69.252.80.75', '71.230.36.162', '96.114.14.140'].toSorted())
await button(page, 'End phone, which receives groupcast1').click()
await page.getByRole('status').filter({ hasText: 'Ended.' }).waitFor()
assert.deepEqual((await information()).groupcast1, ['172.168.0.5', '69.252.80.75', '96.114.14.140'])
await button(page, 'End the link with svc-upload').click()
await page.getByRole('status').filter({ hasText: 'The link was ended' }).waitFor()
assert.deepEqual((await information()).groupcast1, ['172.168.0.5', '69.252.80.75'])
assert.equal(await page.getByRole('listitem', { name: 'Service svc-upload' }).count(), 0)
await group.getByText('1 receives').waitFor()
await button(page, 'End camera1, which sends groupcast1').click()
await page.getByText('No camera is sending to a group now.').waitFor()
assert.deepEqual(await information(), {}, 'the group ended with its last source')
passed('end')

// What a household does besides.
await page.getByText('Add a premises').click()
await page.getByRole('region', { name: 'Premises' }).getByLabel('Name', { exact: true }).fill('Cabin <1>')
await button(page, 'Add it').click()
const cabin = page.getByRole('listitem', { name: 'Premises Cabin <1>' })
await cabin.getByText('Copies are made at home now.').waitFor()
await cabin.getByText('Where copies are made').click()
await cabin.getByLabel('Copies of what Cabin <1> sends').selectOption('network')
await cabin.getByLabel('While no relay in the network is there').selectOption('stop')
await cabin.getByRole('button', { name: 'Save' }).click()
await page.getByText('The premises was changed.').waitFor()
assert.equal(await cabin.getByLabel('Copies of what Cabin <1> sends').inputValue(), 'network')
assert.equal(await cabin.getByLabel('While no relay in the network is there').inputValue(), 'stop')
await page.getByRole('listitem', { name: 'Premises Cabin <1>' }).getByText('New device at Cabin <1>').click()
await page.getByRole('listitem', { name: 'Premises Cabin <1>' }).getByLabel('What it is').selectOption('camera')
await page.getByRole('listitem', { name: 'Premises Cabin <1>' }).getByRole('button', { name: 'Make a ticket' }).click()
await page.getByText('shown only now').waitFor()
await accessible(page)
await picture(page, 'ticket')
assert.equal(await ask('ticket', await page.locator('#ticket').innerText()), 'enrolled')
await page.getByRole('link', { name: 'Back to the account' }).click()
await page.getByText('Let a service receive').click()
await page.getByLabel('Name of the service').fill('svc-nobody')
await button(page, 'Let it receive').click()
await page.getByRole('heading', { name: 'Not found' }).waitFor()
await accessible(page)
await page.getByRole('link', { name: 'Go back' }).click()
await page.getByText('Let a service receive').click()
await page.getByLabel('Name of the service').fill('svc-upload')
await button(page, 'Let it receive').click()
await page.getByRole('listitem', { name: 'Service svc-upload' }).waitFor()
await button(page, 'Remove home').click()
await page.getByRole('alert').filter({ hasText: 'Remove them first.' }).waitFor()
passed('account')

// A session that has grown old asks for the password, and goes on where it was.
await ask('later', '301')
await button(page, 'Remove phone').click()
await page.getByRole('heading', { name: 'Your password again' }).waitFor()
await accessible(page)
await picture(page, 'confirm')
await page.getByLabel('Your password').fill('not the right words')
await button(page, 'Go on').click()
await page.getByRole('alert').filter({ hasText: 'The password is wrong.' }).waitFor()
await page.waitForTimeout(1200)
await page.getByLabel('Your password').fill(password)
await button(page, 'Go on').click()
await page.getByRole('status').filter({ hasText: 'The device was removed.' }).waitFor()
assert.equal(await ask('phone'), '401')
await button(page, 'Remove camera2').click()
await page.getByRole('status').filter({ hasText: 'The device was removed.' }).waitFor()
await ask('later', '301')
const late = await ask('enrol', 'camera')
await page.goto(`${origin}/device?user_code=${late}`)
await button(page, 'Continue').click()
await button(page, 'Approve').click()
await page.getByRole('alert').filter({ hasText: 'Type your password' }).waitFor()
await accessible(page)
await picture(page, 'approve-stale')
await page.getByLabel('Your password').fill(password)
await button(page, 'Approve').click()
await page.getByRole('status').filter({ hasText: 'Approved.' }).waitFor()
assert.equal(await ask('enrolled'), 'enrolled')
passed('old session')

// On a phone, and in the dark.
const small = await open({ viewport: { width: 360, height: 740 }, hasTouch: true, isMobile: true })
await small.goto(`${origin}/account`)
await logIn(small)
for (const colorScheme of ['light', 'dark']) {
  await small.emulateMedia({ colorScheme })
  const waiting = await ask('enrol', 'gateway')
  for (const path of ['/account', '/account/password', `/device?user_code=${waiting}`]) {
    await small.goto(origin + path)
    if (path.startsWith('/device')) {
      await button(small, 'Continue').click()
      await small.getByText(/copy what the cameras of its premises send/).waitFor()
    }
    for (const summary of await small.locator('summary').all()) await summary.click()
    await accessible(small)
    assert.ok((await small.evaluate(() => document.documentElement.scrollWidth)) <= 360, `${path} is wider than the screen`)
    const worst = await contrast(small)
    assert.ok(worst >= 4.5, `${path} in ${colorScheme}: contrast ${worst}`)
    await picture(small, `${colorScheme}${path.split('?')[0].replaceAll('/', '-')}`)
  }
  await button(small, 'Refuse').click()
  assert.match(await ask('enrolled'), /^failed /)
}
await page.emulateMedia({ colorScheme: 'dark' })
await page.goto(`${origin}/account`)
await picture(page, 'dark-account')
assert.deepEqual(faults.flat(), [], 'no complaint, and no request to anybody else')
passed('phone and dark')

// A page of this origin listens with the browser's own EventSource, over restarts of the service. Ours have no script and may connect to nothing, so it
// is one of no page of ours: the answer of /healthz.
const listener = await page.context().newPage()
const asked = []
listener.on('request', async (r) => {
  if (new URL(r.url()).pathname.endsWith('/events')) asked.push({ path: new URL(r.url()).pathname, last: (await r.allHeaders())['last-event-id'] })
})
await listener.goto(`${origin}/healthz`)
const listen = (path) => listener.evaluate((path) => {
  const heard = []
  const source = new EventSource(path)
  for (const name of ['group', 'account', 'resync']) {
    source.addEventListener(name, (e) => heard.push({ name, last: e.lastEventId, ...JSON.parse(e.data) }))
  }
  const opened = new Promise((done, failed) => { source.onopen = done; setTimeout(() => failed(new Error('not open')), 15000) })
  window.streams = { ...window.streams, [path]: { source, heard } }
  return opened.then(() => {})
}, path)
const heard = async (path, type) => {
  const found = await listener.waitForFunction(([path, type]) => window.streams[path].heard.find((e) => e.type === type), [path, type], { timeout: 45000 })
  return found.jsonValue()
}
await listen('/v1/events')
await ask('start')
const created = await heard('/v1/events', 'groupcast.group.created')
assert.deepEqual([created.name, created.data.groupName, created.data.rev], ['group', 'groupcast1', 1])
const ofGroup = `/v1/groups/${created.data.groupId}/events`
await listen(ofGroup)
assert.equal((await heard(ofGroup, 'groupcast.group.state')).last, '1', 'how it is comes first')
const asksBefore = asked.length
await ask('restart')
await ask('end')
for (const path of ['/v1/events', ofGroup]) {
  assert.equal((await heard(path, 'groupcast.group.ended')).data.rev, 2)
  const all = await listener.evaluate((path) => window.streams[path].heard, path)
  assert.ok(!all.some((e) => e.name === 'resync'), 'it went on where it was')
  const revs = all.filter((e) => e.name === 'group').map((e) => e.data.rev)
  assert.deepEqual(revs, [1, 2], 'each once')
}
for (const [path, last] of [['/v1/events', created.last], [ofGroup, '1']]) {
  assert.ok(asked.slice(asksBefore).some((a) => a.path === path && a.last === last), `the browser sent Last-Event-ID ${last}: ${JSON.stringify(asked)}`)
}
await page.evaluate(() => { window.blocked = new Promise((done) => document.addEventListener('securitypolicyviolation', (e) => done(e.effectiveDirective))); new EventSource('/v1/events') })
assert.equal(await page.evaluate(() => window.blocked), 'connect-src', 'a script in a page of ours hears nothing')
await listener.close()
passed('EventSource')

// A page at another port of this host: the same site, so that the browser sends the cookie, and yet somebody else.
const evil = http.createServer((_, answer) => {
  answer.setHeader('Content-Type', 'text/html')
  answer.end(`<form method="post" action="${origin}/account/premises"><input name="name" value="Trap"><button>Win</button></form>
    <iframe title="trap" src="${origin}/account"></iframe>`)
})
await new Promise((done) => evil.listen(0, '127.0.0.1', done))
const victim = await page.context().newPage()
const complaints = watch(victim)
await victim.goto(`http://127.0.0.1:${evil.address().port}/`)
assert.ok(complaints.some((c) => c.includes('frame-ancestors')), `our page must not be framed: ${complaints}`)
const [refused] = await Promise.all([victim.waitForResponse(`${origin}/account/premises`), victim.getByRole('button', { name: 'Win' }).click()])
assert.equal(refused.status(), 403)
assert.ok((await refused.request().allHeaders()).cookie?.includes('__Host-groupcast='), 'else this proves nothing')
await victim.getByRole('alert').filter({ hasText: 'A page of another site sent this.' }).waitFor()
await page.goto(`${origin}/account`)
assert.equal(await page.getByRole('listitem', { name: 'Premises Trap' }).count(), 0)
// What got into a page could do nothing there, and this watcher would tell.
const before = faults[0].length
await page.evaluate(() => {
  const s = document.createElement('script')
  s.textContent = 'document.title = "won"'
  document.body.append(s)
  const i = document.createElement('img')
  i.src = 'http://127.0.0.1:9/steal'
  document.body.append(i)
})
await page.waitForTimeout(300)
assert.notEqual(await page.title(), 'won')
assert.ok(faults[0].slice(before).filter((f) => /Content Security Policy/.test(f)).length >= 2, `${faults[0]}`)
passed('another site')
evil.close()
await browser.close()
process.exit(0)
