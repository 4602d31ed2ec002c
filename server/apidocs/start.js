"use strict";
// validatorUrl: null keeps Swagger UI from sending the contract's address to a validator on the Internet.
SwaggerUIBundle({
  url: "openapi.yaml",
  dom_id: "#contract",
  presets: [SwaggerUIBundle.presets.apis],
  layout: "BaseLayout",
  validatorUrl: null,
  deepLinking: true,
  displayOperationId: true,
  showExtensions: true,
  defaultModelsExpandDepth: 0,
});
