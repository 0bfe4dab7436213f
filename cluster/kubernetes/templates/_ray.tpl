{{/* A RayCluster's spec. Takes root, and groups: a list of name, image, values, replicas and so on. */}}
{{- define "prefpaint.cluster" -}}
{{- $autoscales := or .isService (not .root.Values.queue) -}}
rayVersion: "2.60.0"
# The Secret holds the token that every node and client must present (RAY_AUTH_TOKEN).
authOptions: {mode: token, secretName: prefpaint-ray-token}
# The cluster's state survives the head's pod (redis.yaml).
gcsFaultToleranceOptions:
  backend: redis
  redisAddress: prefpaint-redis:6379
  redisPassword:
    valueFrom: {secretKeyRef: {name: prefpaint-redis, key: password}}
enableInTreeAutoscaling: {{ $autoscales }}
{{- if $autoscales }}
autoscalerOptions:
  version: v2
  idleTimeoutSeconds: 600
  resources:
    requests: {cpu: 500m, memory: 1Gi, ephemeral-storage: 1Gi}
    limits: {cpu: 500m, memory: 1Gi, ephemeral-storage: 1Gi}
  securityContext:
    allowPrivilegeEscalation: false
    capabilities: {drop: [ALL]}
{{- end }}
headGroupSpec:
  rayStartParams: {num-cpus: "0"}
  template:
    {{- include "prefpaint.pod" (dict "root" .root "group" "head" "values" .root.Values.head "isService" .isService) | nindent 4 }}
workerGroupSpecs:
{{- range $name, $values := .groups }}
  {{- $max := int $values.max }}
  - groupName: {{ $name }}
    replicas: {{ $autoscales | ternary (int (default 0 $values.min)) $max }}
    minReplicas: {{ $autoscales | ternary (int (default 0 $values.min)) $max }}
    maxReplicas: {{ $max }}
    rayStartParams: {}
    # Resources of Ray: the roles whose actors the node takes.
    resources:
    {{- range $values.roles }}
      {{ . }}: {{ $values.gpus | quote }}
    {{- end }}
    template:
      {{- include "prefpaint.pod" (dict "root" $.root "group" $name "values" $values "isService" $.isService) | nindent 6 }}
{{- end }}
{{- end }}

{{/* The pod of a Ray node. Takes root, group, values and isService. */}}
{{- define "prefpaint.pod" -}}
{{- $isHead := eq .group "head" -}}
{{- $isServer := and .isService (not $isHead) -}}
{{- $values := .root.Values -}}
metadata:
  labels: {app.kubernetes.io/part-of: prefpaint}
  {{- if not .isService }}
  # A node that could be emptied is kept while training goes on.
  annotations:
    cluster-autoscaler.kubernetes.io/safe-to-evict: "false"
    karpenter.sh/do-not-disrupt: "true"
  {{- end }}
spec:
  # Autoscaler v2 needs a new pod for each new Ray node.
  restartPolicy: Never
  terminationGracePeriodSeconds: {{ .isService | ternary (add (int $values.service.requestSeconds) 30) 60 }}
  {{- include "prefpaint.scheduling" .root | nindent 2 }}
  securityContext:
    runAsNonRoot: true
    runAsUser: 1000
    runAsGroup: 1000
    fsGroup: 1000
    seccompProfile: {type: RuntimeDefault}
  {{- if not $isHead }}
  nodeSelector: {prefpaint-role: {{ .group }}}
  tolerations:
    - {key: nvidia.com/gpu, operator: Exists, effect: NoSchedule}
    {{- if .values.spot }}
    - {key: prefpaint-spot, operator: Exists, effect: NoSchedule}
    {{- end }}
  {{- end }}
  {{- if $isServer }}
  # Copies on several machines and zones, where there are such.
  topologySpreadConstraints:
  {{- range list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
    - maxSkew: 1
      topologyKey: {{ . }}
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels: {app.kubernetes.io/part-of: prefpaint, ray.io/group: server}
  {{- end }}
  {{- end }}
  containers:
    - name: {{ $isHead | ternary "ray-head" "ray-worker" }}
      image: {{ $isHead | ternary $values.image.cpu $values.image.gpu }}
      securityContext:
        allowPrivilegeEscalation: false
        readOnlyRootFilesystem: true
        capabilities: {drop: [ALL]}
      env:
        - {name: HF_HOME, value: /shared/huggingface}
      # Keys of the hub, storage and service; authOptions passes Ray's token.
      envFrom:
        - secretRef: {name: prefpaint-keys, optional: true}
      ports:
        {{- if $isHead }}
        - {name: gcs, containerPort: 6379}
        - {name: dashboard, containerPort: 8265}
        - {name: client, containerPort: 10001}
        {{- end }}
        - {name: serve, containerPort: 8000}
        - {name: metrics, containerPort: 8080}
      resources:
        {{- range list "requests" "limits" }}
        {{ . }}:
          cpu: {{ $.values.cpu | quote }}
          memory: {{ $.values.memory }}
          ephemeral-storage: {{ $.values.disk }}
          {{- with $.values.gpus }}
          nvidia.com/gpu: {{ . | quote }}
          {{- end }}
        {{- end }}
      # Probes ask the agent on each node; on the head also GCS.
      livenessProbe:
        httpGet: {path: /api/healthz, port: 52365}
        initialDelaySeconds: 60
        periodSeconds: 15
        timeoutSeconds: 5
        failureThreshold: 20
      {{- if $isServer }}
      # A pod is ready when Serve's proxy answers, so that no request reaches one that cannot.
      readinessProbe:
        httpGet: {path: /-/healthz, port: 8000}
        periodSeconds: 5
        timeoutSeconds: 5
        failureThreshold: 1
      # No new requests come; those in work have time to end.
      lifecycle:
        preStop:
          sleep: {seconds: {{ int $values.service.requestSeconds }}}
      {{- else }}
      readinessProbe:
        httpGet: {path: /api/healthz, port: 52365}
        periodSeconds: 10
        timeoutSeconds: 5
        failureThreshold: 10
      {{- end }}
      # The root file system is read-only; only these folders are writable.
      volumeMounts:
        - {name: shared, mountPath: /shared}
        - {name: tmp, mountPath: /tmp}
        - {name: ray-logs, mountPath: /tmp/ray}
        - {name: home, mountPath: /home/ray}
        - {name: shm, mountPath: /dev/shm}
  volumes:
    - name: shared
      persistentVolumeClaim: {claimName: prefpaint-shared}
    - {name: tmp, emptyDir: {}}
    - {name: ray-logs, emptyDir: {}}
    - {name: home, emptyDir: {}}
    # Ray's object store; it counts towards the memory limit.
    - {name: shm, emptyDir: {medium: Memory, sizeLimit: {{ $values.objectStore }}}}
{{- end }}

{{/* What Kueue needs of a cluster or job: the queue's name; Kueue itself ends the suspension. */}}
{{- define "prefpaint.queue" -}}
{{- with .Values.queue }}
labels: {kueue.x-k8s.io/queue-name: {{ . }}}
{{- end }}
{{- end }}

{{/* What every pod has. */}}
{{- define "prefpaint.scheduling" -}}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
{{- end }}
